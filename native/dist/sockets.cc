#include "dist/sockets.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace varlen::dist {
namespace {

bool SameAddress(const sockaddr_storage& a, const sockaddr_storage& b) {
  if (a.ss_family != b.ss_family || a.ss_family == AF_UNSPEC) return false;
  if (a.ss_family == AF_INET) {
    const auto& x = reinterpret_cast<const sockaddr_in&>(a);
    const auto& y = reinterpret_cast<const sockaddr_in&>(b);
    return x.sin_port == y.sin_port && x.sin_addr.s_addr == y.sin_addr.s_addr;
  }
  const auto& x = reinterpret_cast<const sockaddr_in6&>(a);
  const auto& y = reinterpret_cast<const sockaddr_in6&>(b);
  return x.sin6_port == y.sin6_port &&
         std::memcmp(&x.sin6_addr, &y.sin6_addr, sizeof x.sin6_addr) == 0;
}

bool IsOneOf(const std::vector<sockaddr_storage>& addresses, const sockaddr_storage& address) {
  return std::any_of(addresses.begin(), addresses.end(),
                     [&](const sockaddr_storage& each) { return SameAddress(each, address); });
}

// The ends of an open socket; `peer` has family 0 when it is not connected, both when it is none.
Link LinkOf(int fd) {
  Link link;
  socklen_t length = sizeof link.own;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&link.own), &length) != 0) return {};
  link.fd = fd;
  length = sizeof link.peer;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&link.peer), &length) != 0) link.peer = {};
  return link;
}

template <class Visit>
void ForEachSocket(const Visit& visit) {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    char* end = nullptr;
    const int fd = static_cast<int>(std::strtol(entry->d_name, &end, 10));
    if (end == entry->d_name || *end != '\0') continue;  // "." and ".."
    const Link link = LinkOf(fd);
    if (link.fd >= 0) visit(link);
  }
  closedir(folder);
}

// A descriptor of our own for a socket: nobody can close it, nor give its number to another one,
// between a look at it and its use.
class Held {
 public:
  explicit Held(int fd) : fd_(fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0)) {}
  ~Held() {
    if (fd_ >= 0) close(fd_);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  int fd() const { return fd_; }
  bool Is(const Link& link) const {
    const Link now = LinkOf(fd_);
    return now.fd >= 0 && SameAddress(now.own, link.own) && SameAddress(now.peer, link.peer);
  }

 private:
  const int fd_;
};

}  // namespace

std::vector<Link> FindLinks(const std::vector<sockaddr_storage>& own,
                            const std::vector<sockaddr_storage>& peers) {
  std::vector<Link> links(own.size());
  ForEachSocket([&](const Link& link) {
    if (link.peer.ss_family == AF_UNSPEC) return;
    for (size_t i = 0; i < own.size(); ++i) {
      if (SameAddress(own[i], link.own) || SameAddress(peers[i], link.peer)) links[i] = link;
    }
  });
  return links;
}

bool HasEnded(const Link& link) {
  const Held held(link.fd);
  // A connection that was reset has no other end any more.
  if (!held.Is(link)) return true;
  pollfd state{held.fd(), POLLRDHUP, 0};
  return poll(&state, 1, 0) > 0 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool Shutdown(const Link& link) {
  const Held held(link.fd);
  return held.Is(link) && shutdown(held.fd(), SHUT_RDWR) == 0;
}

void ShutdownAll(const std::vector<sockaddr_storage>& own,
                 const std::vector<sockaddr_storage>& peers) {
  ForEachSocket([&](const Link& link) {
    const Held held(link.fd);
    const Link now = LinkOf(held.fd());
    if (IsOneOf(own, now.own) || IsOneOf(peers, now.peer)) shutdown(held.fd(), SHUT_RDWR);
  });
}

}  // namespace varlen::dist

#include "dist/sockets.h"

#include <dirent.h>
#include <netinet/in.h>

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

bool IsListening(int fd) {
  int listening = 0;
  socklen_t length = sizeof listening;
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 && listening != 0;
}

struct Ends {
  sockaddr_storage own{};
  sockaddr_storage peer{};  // family 0 when not connected
};

// Calls `visit(fd, ends)` for every open socket of this process that is not listening.
template <class Visit>
void ForEachSocket(const Visit& visit) {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    char* end = nullptr;
    const int fd = static_cast<int>(std::strtol(entry->d_name, &end, 10));
    if (end == entry->d_name || *end != '\0') continue;  // "." and ".."
    Ends ends;
    socklen_t length = sizeof ends.own;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&ends.own), &length) != 0) continue;
    if (IsListening(fd)) continue;
    length = sizeof ends.peer;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&ends.peer), &length) != 0) ends.peer = {};
    visit(fd, ends);
  }
  closedir(folder);
}

}  // namespace

int ShutdownSockets(const std::vector<sockaddr_storage>& addresses) {
  int count = 0;
  ForEachSocket([&](int fd, const Ends& ends) {
    const bool ours =
        std::any_of(addresses.begin(), addresses.end(), [&](const sockaddr_storage& address) {
          return SameAddress(address, ends.own) || SameAddress(address, ends.peer);
        });
    if (ours && shutdown(fd, SHUT_RDWR) == 0) ++count;
  });
  return count;
}

std::vector<sockaddr_storage> PeersOf(const std::vector<sockaddr_storage>& own) {
  std::vector<sockaddr_storage> peers(own.size());
  ForEachSocket([&](int, const Ends& ends) {
    for (size_t i = 0; i < own.size(); ++i) {
      if (SameAddress(own[i], ends.own)) peers[i] = ends.peer;
    }
  });
  return peers;
}

}  // namespace varlen::dist

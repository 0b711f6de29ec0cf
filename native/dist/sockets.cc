#include "dist/sockets.h"

#include <dirent.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace varlen::dist {
namespace {

bool SameAddress(const sockaddr_storage& a, const sockaddr_storage& b) {
  if (a.ss_family != b.ss_family) return false;
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

bool HasEndIn(const std::vector<sockaddr_storage>& addresses, int fd) {
  const auto any = [&](const sockaddr_storage& end) {
    return std::any_of(addresses.begin(), addresses.end(),
                       [&](const sockaddr_storage& address) { return SameAddress(address, end); });
  };
  sockaddr_storage own{}, peer{};
  socklen_t own_length = sizeof own, peer_length = sizeof peer;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_length) != 0) return false;
  if (any(own)) return true;
  return getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_length) == 0 && any(peer);
}

}  // namespace

int ShutdownSockets(const std::vector<sockaddr_storage>& addresses) {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  int count = 0;
  while (const dirent* entry = readdir(folder)) {
    char* end = nullptr;
    const long fd = std::strtol(entry->d_name, &end, 10);
    if (end == entry->d_name || *end != '\0') continue;  // "." and ".."
    if (!HasEndIn(addresses, static_cast<int>(fd))) continue;
    if (IsListening(static_cast<int>(fd))) continue;
    if (shutdown(static_cast<int>(fd), SHUT_RDWR) == 0) ++count;
  }
  closedir(folder);
  return count;
}

}  // namespace varlen::dist

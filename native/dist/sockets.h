#pragma once

#include <sys/socket.h>

#include <vector>

// Gloo's connections, found among the sockets of this process by their addresses: Gloo tells
// neither their descriptors nor which of them have ended.
namespace varlen::dist {

// One connection. Gloo may close it at any time and another one take its number, so every use looks
// at both of its ends first.
struct Link {
  int fd = -1;  // -1: there is none any more
  sockaddr_storage own{};
  sockaddr_storage peer{};
};

// For each i the connection whose own address is `own[i]` or whose other end is `peers[i]`: who
// connects does so from a port of its own, to an address that the other one has published.
std::vector<Link> FindLinks(const std::vector<sockaddr_storage>& own,
                            const std::vector<sockaddr_storage>& peers);

// True when the other end has closed the connection, or when it is not open here.
bool HasEnded(const Link& link);

// Ends the connection for both sides; false when it is not open.
bool Shutdown(const Link& link);

// Ends every socket of this process whose own address is in `own` or whose other end is in `peers`,
// listening ones included: who waits for a connection is woken as well.
void ShutdownAll(const std::vector<sockaddr_storage>& own,
                 const std::vector<sockaddr_storage>& peers);

}  // namespace varlen::dist

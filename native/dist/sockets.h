#pragma once

#include <sys/socket.h>

#include <vector>

// The only way to wake a Gloo operation from outside: Context::closeConnections() leaves it waiting
// for its whole deadline, while a connection that ends wakes it within milliseconds.
namespace varlen::dist {

// Shuts down every connected socket of this process whose own address is in `addresses`; returns
// how many. Listening sockets stay: Gloo closes them itself.
int ShutdownSockets(const std::vector<sockaddr_storage>& addresses);

// For each local address the other end of the connection that uses it; family 0 where there is
// none.
std::vector<sockaddr_storage> PeersOf(const std::vector<sockaddr_storage>& own);

}  // namespace varlen::dist

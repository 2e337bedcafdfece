// Package guest is the way between the host and the agent in a guest: the
// protocol, the host's [Client] and what the guest needs to serve it.
//
// A request is HTTP/1.1 with JSON: GET /ping, /listeners, /stats; POST
// /configure, /poweroff; the types are those of agent.go. A POST that
// upgrades becomes a stream of bytes both ways ([Client.Stream]).
//
// A virtio-serial port is one byte stream for the guest's whole life, on which the
// guest does not notice a quick reconnect of the host, so every connection begins
// with a reset: the host sends a marker with a random nonce and discards everything
// until the same marker comes back; the guest drops its session wherever the marker
// appears and echoes it. What follows is a yamux session without keepalive (an
// idle guest must sleep), one request per stream.
//
// Where there is vsock each request has a connection of its own on it. Any user of
// the host can connect there, so both sides first prove that they know a secret
// (handshake.go). The host makes it and sends it over the port with POST /vsock, which
// only root of the guest reads. The guest's [Gate] admits no other peer. When a
// handshake fails the host sends the secret again, and if that does not help the port
// serves alone for a while.
//
// The host trusts nothing that it reads: answers are bounded in length, rows
// and time. The client runs one goroutine while it opens a session and those of
// yamux while it has one; [Client.Close] ends them all.
package guest

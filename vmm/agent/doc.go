// Package agent is the way between the host and the agent in a guest: the
// protocol, the host's [Client] and what the guest needs to serve it.
//
// A request is HTTP/1.1 with JSON: GET /ping, /listeners, /stats; POST
// /configure, /poweroff; the types are those of vmm/guest.go. A POST that
// upgrades becomes a stream of bytes both ways ([Client.Stream]). Over vsock each
// request has a connection of its own. A virtio-serial port is one byte stream
// for the guest's whole life, on which the guest does not notice a quick
// reconnect of the host, so every connection begins with a reset: the host
// sends a marker with a random nonce and discards everything until the same
// marker comes back; the guest drops its session wherever the marker
// appears and echoes it. What follows is a yamux session without keepalive (an
// idle guest must sleep), one request per stream.
//
// The host trusts nothing that it reads: answers are bounded in length, rows
// and time. The client runs one goroutine while it opens a session and those of
// yamux while it has one; [Client.Close] ends them all.
package agent

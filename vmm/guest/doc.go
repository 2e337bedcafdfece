// Package guest holds everything that the host and the agent in a guest say to each other, for both
// sides. It is a leaf: the daemon, its drivers and the agent's program import it. Package sftp
// below it has the guest's files.
//
// [Agent], [Streamer] and [Freezer] are the host's interfaces to an agent; agent.go has the types
// of requests and answers. [Client] implements them over a guest's channels, and [Handler] with
// [ServePort] and [Gate] serves them in the guest. [StartExec] and [ExecServer] are the two sides
// of commands, [EndHandler] and [CollectEnd] those of how an image's program ended.
//
// A request is HTTP/1.1 with JSON: GET /ping, /listeners and /stats; POST /configure, /freeze,
// /thaw and /poweroff. A POST that upgrades becomes a stream of bytes both ways ([Client.Stream]).
//
// A virtio-serial port is one byte stream for the guest's whole life, on which the guest does not
// notice a quick reconnect of the host. So every connection begins with a reset: the host sends a
// marker with a random nonce and discards everything until the same marker returns. The guest
// ends its session wherever a marker appears, and echoes it. Then follows a yamux session without
// keepalive (an idle guest must sleep), with one request per stream.
//
// Where there is vsock, each request has a connection of its own on it. Any user of the host can
// connect there, so both sides first prove that they know a secret (handshake.go). The host makes
// it and sends it over the port, which only root of the guest reads, with POST /vsock. The guest's
// [Gate] admits no other peer. When a handshake fails the host sends the secret again. If that does
// not help, the port serves alone for a while.
//
// The host does not trust the guest: answers are bounded in length, rows and time. A client has one
// goroutine while it opens a session, and those of yamux while it has one. [Client.Close] ends them
// all.
package guest

// Package sftp is a client of the SSH file transfer protocol, version 3 (draft-ietf-secsh-filexfer-02), for a server that is not
// trusted: a guest's agent, as guest.FilesStream says. Every answer is bounded in length and read without trust in a
// count in it, every call ends with its context, and a session whose server breaks the protocol ends. (The client of
// github.com/pkg/sftp trusts the far end: counts allocate, short packets panic, calls know no context.)
//
// A [Client] is one session; its calls may come from many goroutines, and go to the server in the order in which they begin.
// It runs two goroutines, which end with it.
package sftp

// Package sftp serves a guest's files to the host: the SSH file transfer protocol, version 3
// (draft-ietf-secsh-filexfer-02), with OpenSSH's extensions statvfs@, posix-rename@ and
// hardlink@openssh.com, and seek@banger for holes. packet.go and status.go are the codec of both
// sides.
//
// [Handler] is the agent's side. It works with root's rights and follows no symbolic link in a
// path. An error's text ends in that of its errno(3), as Go's syscall has it. The mode in the
// attributes of OPEN is that of a new file. Extended attributes carry other fields that the
// protocol lacks.
//
// A [Client] is the host's side of one session, and does not trust the guest. Every answer is
// bounded in length, no count in it is believed, every call ends with its context, and a session
// whose server breaks the protocol ends. (The client of github.com/pkg/sftp trusts its server:
// counts allocate, short packets panic, calls have no context.) Many goroutines may use a client;
// requests are sent in the order in which calls begin. A client has two goroutines, which end with
// it.
package sftp

// Stream is the path of the agent's stream on which the host gets a session.
const Stream = "/sftp"

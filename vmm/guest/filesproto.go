package guest

import (
	"encoding/binary"
	"time"
)

// FilesStream is the agent's stream that serves the guest's files with root's rights: the SSH file transfer protocol, version 3
// (draft-ietf-secsh-filexfer-02), with OpenSSH's extensions statvfs@, posix-rename@ and hardlink@openssh.com. No symbolic link
// in a path is followed. An error's text ends in that of its errno(3), as Go's syscall has it. A mode in
// the attributes of SSH_FXP_OPEN is that of a new file. What else the protocol lacks is in extended attributes.
const (
	FilesStream = "/sftp"
	FilesStat   = "stat@banger"  // in what the agent tells of a file: a FileStat
	FilesTimes  = "times@banger" // in SSH_FXP_SETSTAT: two times, or TimeOmit or TimeNow, of access and of change
	FilesSync   = "sync@banger"  // in SSH_FXP_SETSTAT, empty: fsync(2)
	// In SSH_FXP_OPEN and SSH_FXP_SETSTAT, empty: what is asked for next. A handle is followed by the attributes of the file and those of its
	// directory; SETSTAT that is done is answered with SSH_FXP_ATTRS. A server that does not know it answers as the protocol says.
	FilesAttrs = "attrs@banger"
)

// What FilesTimes has in place of nanoseconds after 1970, as UTIME_OMIT and UTIME_NOW of utimensat(2).
const (
	TimeOmit = -1 << 63
	TimeNow  = 1<<63 - 1
)

// FileStat is what version 3 of the protocol has no attribute for.
type FileStat struct {
	Nlink, Blocks, Rdev uint64
	Atime, Mtime, Ctime time.Time
}

// Append gives b with the encoded form, six integers of 64 bits.
func (s FileStat) Append(b []byte) []byte {
	return AppendFileInts(b, int64(s.Nlink), int64(s.Blocks), int64(s.Rdev), s.Atime.UnixNano(), s.Mtime.UnixNano(), s.Ctime.UnixNano())
}

// ParseFileStat undoes Append.
func ParseFileStat(text string) (s FileStat, ok bool) {
	var n [6]int64
	if !ParseFileInts(text, n[:]) {
		return s, false
	}
	return FileStat{uint64(n[0]), uint64(n[1]), uint64(n[2]), time.Unix(0, n[3]), time.Unix(0, n[4]), time.Unix(0, n[5])}, true
}

// AppendFileInts gives b with the integers of an extended attribute.
func AppendFileInts(b []byte, ints ...int64) []byte {
	for _, n := range ints {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

// ParseFileInts reads exactly as many as there is room for.
func ParseFileInts(text string, ints []int64) bool {
	if len(text) != 8*len(ints) {
		return false
	}
	for i := range ints {
		ints[i] = int64(binary.BigEndian.Uint64([]byte(text[8*i:])))
	}
	return true
}

package audit

import (
	"bytes"
	"strconv"
	"time"

	"banger/internal/printable"
	"banger/internal/value"
)

// daemon is the Comm of what the daemon does by itself.
const daemon = "bangerd"

// Line is one line: SECONDS UID PID COMM PATH WHAT RESULT. Its texts need no escaping. Empty ones
// and the pid 0 are shown as "-".
type Line struct {
	UID  uint32
	PID  uint32
	Comm string // the process's name, which its user chooses
	Path string // below the mount
	What string
	// Result is "ok", or the name of an errno.
	Result string
}

// append appends the line to b.
func (l *Line) append(b []byte, at time.Time) []byte {
	b = append(b, value.FormatTime(at)...)
	b = strconv.AppendUint(append(b, ' '), uint64(l.UID), 10)
	pid := ""
	if l.PID != 0 {
		pid = strconv.FormatUint(uint64(l.PID), 10)
	}
	for _, word := range [...]string{pid, l.Comm, l.Path, l.What, l.Result} {
		b = append(append(b, ' '), printable.Word(word)...)
	}
	return append(b, '\n')
}

// lostLine is a line about lines of a user that were not written.
func lostLine(uid uint32, lost uint64) Line {
	return Line{UID: uid, What: "lost[" + strconv.FormatUint(lost, 10) + "]"}
}

// uidOf returns the uid of a line, and whether its process is named as the daemon. It returns false
// for what is no line, such as bytes that a power failure kept from being written.
func uidOf(line []byte) (uid uint32, own, ok bool) {
	words := bytes.SplitN(line, []byte(" "), 5)
	if len(words) != 5 || bytes.IndexByte(line, 0) >= 0 {
		return 0, false, false
	}
	n, err := strconv.ParseUint(string(words[1]), 10, 32)
	return uint32(n), string(words[3]) == daemon, err == nil
}

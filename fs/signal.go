package fs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// signalEvery is how often a caller is checked after a signal that did not end its call.
const signalEvery = 50 * time.Millisecond

// harmlessSignals do not end a blocked system call unless the program handles them.
const harmlessSignals = 1<<(syscall.SIGCHLD-1) | 1<<(syscall.SIGWINCH-1) |
	1<<(syscall.SIGURG-1) | 1<<(syscall.SIGCONT-1)

// harmless reports whether a thread has no pending signal but harmless ones (proc(5), status). It
// is false where that is unknown.
func harmless(tid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	pending, ok := pendingSignals(status)
	return ok && pending&^harmlessSignals == 0
}

// pendingSignals returns the pending signals of a thread that are not blocked, signal N as bit N-1.
func pendingSignals(status []byte) (uint64, bool) {
	fields := parseStatus(status)
	var masks [3]uint64
	for i, key := range []string{"SigPnd", "ShdPnd", "SigBlk"} {
		var err error
		if masks[i], err = strconv.ParseUint(fields[key], 16, 64); err != nil {
			return 0, false
		}
	}
	return (masks[0] | masks[1]) &^ masks[2], true
}

// parseStatus returns the fields of a thread's status (proc(5)).
func parseStatus(status []byte) map[string]string {
	fields := make(map[string]string)
	for l := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(l, ":")
		fields[key] = strings.TrimSpace(value)
	}
	return fields
}

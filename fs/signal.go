package fs

import (
	"bufio"
	"bytes"
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
	masks := make(map[string]uint64)
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch key {
		case "SigPnd", "ShdPnd", "SigBlk":
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return 0, false
			}
			masks[key] = mask
		}
	}
	return (masks["SigPnd"] | masks["ShdPnd"]) &^ masks["SigBlk"], len(masks) == 3
}

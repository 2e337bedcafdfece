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

// signalLook is how often a caller is looked at after a signal that did not end its call.
const signalLook = 50 * time.Millisecond

// harmlessSignals do not end a blocked system call of a program that has not asked for it.
const harmlessSignals = 1<<(syscall.SIGCHLD-1) | 1<<(syscall.SIGWINCH-1) | 1<<(syscall.SIGURG-1) | 1<<(syscall.SIGCONT-1)

// harmless reports whether no signal but harmless ones waits for the thread (proc(5), status).
// It is false where that cannot be told.
func harmless(tid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	pending, ok := pendingSignals(status)
	return ok && pending&^harmlessSignals == 0
}

// pendingSignals gives the signals that wait for a thread and are not blocked, signal N as bit N-1.
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

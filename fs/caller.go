package fs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"banger/vmm"

	"golang.org/x/sys/unix"
)

// caller says who makes the request. It is to be called before anything frees the caller, whose number another process could have then.
func (r *request) caller() (vmm.Caller, error) {
	c := vmm.Caller{UID: r.uid, GID: r.gid}
	if r.pid == 0 { // of another pid namespace
		return c, nil
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
	if err != nil {
		return c, nil
	}
	if c.Groups, err = groups(status); err != nil {
		return c, err
	}
	// Links that lead nowhere or may not be followed leave it unseen: what is named by them will be refused.
	c.Root, _ = os.OpenFile(fmt.Sprintf("/proc/%d/root", r.pid), unix.O_PATH|syscall.O_DIRECTORY, 0)
	c.Dir, _ = os.OpenFile(fmt.Sprintf("/proc/%d/cwd", r.pid), unix.O_PATH|syscall.O_DIRECTORY, 0)
	return c, nil
}

// groups gives the supplementary groups of a thread's status (proc(5)).
func groups(status []byte) ([]uint32, error) {
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "Groups:"); ok {
			var list []uint32
			for _, word := range strings.Fields(text) {
				n, err := strconv.ParseUint(word, 10, 32)
				if err != nil {
					return nil, fmt.Errorf("groups of a process: %w", err)
				}
				list = append(list, uint32(n))
			}
			return list, nil
		}
	}
	return nil, nil
}

package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"banger/internal/host"
)

// The daemon uses these uids and gids: some below vm_uid_base for its own programs, and vmUIDs from
// there on, one for each VM that was ever made.
const (
	vmUIDs = 1 << 24

	leastUIDBase = 1<<16 + host.JobUIDs
	mostUIDBase  = 1<<32 - 1<<16 - vmUIDs // the last ids of 32 bits have meanings of their own
)

// idFiles are the host's files of users' ids. Each line has an id in column and, for a range, a
// count in the next one.
var idFiles = []struct {
	path   string
	column int
	count  bool
}{
	{"/etc/passwd", 2, false}, {"/etc/group", 2, false},
	{"/etc/subuid", 1, true}, {"/etc/subgid", 1, true},
}

// warnOfUIDs logs users that have ids of the daemon's: such a user may signal a VM's process and
// open its disks.
func warnOfUIDs(log *slog.Logger, base int) {
	for _, f := range idFiles {
		text, err := os.ReadFile(f.path)
		if err != nil {
			continue // most hosts lack some of them
		}
		for _, line := range overlaps(string(text), f.column, f.count, base) {
			log.Warn("users of the host have ids of VMs: choose another vm_uid_base",
				"file", f.path, "line", line,
				"first", base-host.JobUIDs, "last", base+vmUIDs-1)
		}
	}
}

// maxOverlaps bounds the lines that are logged of one file.
const maxOverlaps = 8

// overlaps returns NAME:FIRST+COUNT of the lines that have ids of the daemon's.
func overlaps(text string, column int, count bool, base int) []string {
	var all []string
	for line := range strings.SplitSeq(text, "\n") {
		words := strings.Split(line, ":")
		if len(words) <= column {
			continue
		}
		first, err := strconv.Atoi(words[column])
		if err != nil {
			continue
		}
		n := 1
		if count && len(words) > column+1 {
			n, _ = strconv.Atoi(strings.TrimSpace(words[column+1])) // 0 is none
		}
		if first >= base+vmUIDs || first+n <= base-host.JobUIDs {
			continue
		}
		if len(all) == maxOverlaps {
			return append(all, "and more")
		}
		all = append(all, fmt.Sprintf("%s:%d+%d", words[0], first, n))
	}
	return all
}

package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"banger/internal/host"
)

// The uids, and gids, that the daemon uses: host.JobUIDs below vm_uid_base for what it runs itself,
// and vmUIDs from there on, one for each VM that was ever made.
const (
	vmUIDs = 1 << 24

	leastUIDBase = 1<<16 + host.JobUIDs
	mostUIDBase  = 1<<32 - 1<<16 - vmUIDs // the last ids of 32 bits have meanings of their own
)

// idFiles are where a host keeps the ids of its users: the ids are in column, and where there is a
// count after them the line is of a range.
var idFiles = []struct {
	path   string
	column int
	count  bool
}{
	{"/etc/passwd", 2, false}, {"/etc/group", 2, false}, {"/etc/subuid", 1, true}, {"/etc/subgid", 1, true},
}

// warnOfUIDs tells who else has ids that the daemon uses: whoever has one could signal a VM's
// process and open its disks.
func warnOfUIDs(log *slog.Logger, base int) {
	for _, f := range idFiles {
		text, err := os.ReadFile(f.path)
		if err != nil {
			continue // most hosts have not all of them
		}
		for _, who := range overlaps(string(text), f.column, f.count, base) {
			log.Warn("others have ids that VMs are given: choose another vm_uid_base", "file", f.path, "line", who,
				"first", base-host.JobUIDs, "last", base+vmUIDs-1)
		}
	}
}

// maxOverlaps bounds how many are told.
const maxOverlaps = 8

// overlaps returns those of the lines NAME:... that have ids of the daemon's, without what follows the ids.
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
		many := 1
		if count && len(words) > column+1 {
			many, _ = strconv.Atoi(strings.TrimSpace(words[column+1])) // 0 is none
		}
		if first >= base+vmUIDs || first+many <= base-host.JobUIDs {
			continue
		}
		if len(all) == maxOverlaps {
			return append(all, "and more")
		}
		all = append(all, fmt.Sprintf("%s:%d+%d", words[0], first, many))
	}
	return all
}

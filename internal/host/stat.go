package host

import (
	"bytes"
	"strconv"
)

// StartTime returns field 22 of a /proc/PID/stat (proc(5)): when the process was started, in clock
// ticks after the boot. It returns 0 where there is no such field.
func StartTime(stat []byte) uint64 {
	// Field 2, a name in parentheses, may hold anything; the first of these is field 3.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0
	}
	ticks, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}

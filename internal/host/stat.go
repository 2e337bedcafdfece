package host

import (
	"bytes"
	"strconv"
)

// StatFields returns the fields of a /proc/PID/stat from the third on (proc(5)): the state is at 0,
// the session at 3. Field 2, a name in parentheses, may hold anything.
func StatFields(stat []byte) [][]byte {
	return bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
}

// StartTime returns field 22 of a /proc/PID/stat: when the process was started, in clock ticks
// after the boot. It returns 0 where there is no such field.
func StartTime(stat []byte) uint64 {
	fields := StatFields(stat)
	if len(fields) < 20 {
		return 0
	}
	ticks, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}

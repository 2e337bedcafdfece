package guest

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signals as Linux numbers them on all machines that banger runs on. Docker and glibc count
// real-time signals from 34 on: the C library keeps 32 and 33 to itself (signal(7)).
const (
	maxSignal = 64
	realMin   = 34
	realMax   = 64
)

// otherSignals are second names of signals, which signal(7) lists and x/sys/unix lacks.
var otherSignals = map[string]int{
	"CLD":  int(unix.SIGCHLD),
	"IOT":  int(unix.SIGABRT),
	"POLL": int(unix.SIGIO),
}

// SignalName returns INT for 2, RTMIN+3 for 37, and the number itself for a signal without a name
// (signal(7)). Real-time signals have the names that kill(1) lists. ParseSignal reads each back.
func SignalName(signal int) string {
	if name := unix.SignalName(syscall.Signal(signal)); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	from, offset, sign := "", 0, "+"
	switch {
	case signal < realMin || signal > realMax:
		return strconv.Itoa(signal)
	case signal <= (realMin+realMax)/2:
		from, offset = "RTMIN", signal-realMin
	default:
		from, offset, sign = "RTMAX", realMax-signal, "-"
	}
	if offset == 0 {
		return from
	}
	return from + sign + strconv.Itoa(offset)
}

// ParseSignal returns 2 for INT, SIGINT, int and 2, and 37 for RTMIN+3 or SIGRTMIN+3. It knows all
// names that docker takes (moby/sys/signal). It fails with ErrInvalid.
func ParseSignal(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= maxSignal {
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	if n := otherSignals[name]; n != 0 {
		return n, nil
	}
	if n := realSignal(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%.64q is not a signal, such as INT, TERM, RTMIN+3 or 9: %w",
		text, ErrInvalid)
}

// realSignal returns the number of RTMIN, RTMIN+N, RTMAX or RTMAX-N, and 0 for other names.
func realSignal(name string) int {
	from, sign, offset := realMin, 1, ""
	switch {
	case name == "RTMIN":
		return realMin
	case name == "RTMAX":
		return realMax
	case strings.HasPrefix(name, "RTMIN+"):
		offset = name[len("RTMIN+"):]
	case strings.HasPrefix(name, "RTMAX-"):
		from, sign, offset = realMax, -1, name[len("RTMAX-"):]
	default:
		return 0
	}
	n, err := strconv.ParseUint(offset, 10, 8)
	if err != nil || n > realMax-realMin {
		return 0
	}
	return from + sign*int(n)
}

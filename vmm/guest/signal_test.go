package guest

import "testing"

func TestSignals(t *testing.T) {
	for text, want := range map[string]int{
		"INT": 2, "SIGINT": 2, "int": 2, "SigTerm": 15, "64": 64, "1": 1, "33": 33,
		// Names of moby/sys/signal.
		"CLD": 17, "CHLD": 17, "IOT": 6, "ABRT": 6, "POLL": 29, "IO": 29, "PWR": 30, "STKFLT": 16,
		"SYS": 31, "URG": 23, "WINCH": 28, "VTALRM": 26, "XFSZ": 25,
		"RTMIN": 34, "SIGRTMIN": 34, "RTMIN+0": 34, "SIGRTMIN+3": 37, "rtmin+15": 49,
		"RTMIN+30": 64, "RTMAX": 64, "SIGRTMAX-14": 50, "RTMAX-30": 34,
		"0": 0, "65": 0, "-1": 0, "": 0, "NOPE": 0, "SIG": 0, "SIGSIGINT": 0,
		"RTMIN+31": 0, "RTMAX-31": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMIN+": 0, "RTMIN+-1": 0,
		"RTMIN++1": 0, "RTMIN+ 1": 0, "RTMIN+99999999999999999999": 0, "TERM ": 0, "TERM\n": 0,
	} {
		if got, err := ParseSignal(text); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q is signal %d (%v), not %d", text, got, err, want)
		}
	}
	for n := 1; n <= maxSignal; n++ {
		if got, err := ParseSignal(SignalName(n)); got != n || err != nil {
			t.Errorf("%d has the name %s, which is %d (%v)", n, SignalName(n), got, err)
		}
	}
	for n, want := range map[int]string{
		34: "RTMIN", 49: "RTMIN+15", 50: "RTMAX-14", 64: "RTMAX", 32: "32", 65: "65", 0: "0",
	} {
		if got := SignalName(n); got != want {
			t.Errorf("%d has the name %s, not %s", n, got, want)
		}
	}
}

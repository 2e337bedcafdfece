package fake

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/vmm"
	"banger/vmm/guest"
)

const maxDisk = 1 << 30

// script holds the settings from the words of a cmdline.
type script struct {
	boot      time.Duration
	failStart bool
	agent     string // "", never or hang
	slow      time.Duration
	deafFrom  time.Duration // the agent does not answer from this age on
	deafTo    time.Duration // until this age
	stop      string        // "", hang or ignore
	listen    []guest.Listener
	disk      int64
	ends      []end
	slowSave  time.Duration
	failSave  bool
	freeze    string // "" or hang
	failLimit bool
	drift     float64 // of the guest's clock
	clock     string  // "", old, hang or ntp
}

// end is one way in which a machine ends by itself, after it ran for a while.
type end struct {
	after time.Duration
	panic bool
	full  bool // the machine does not end but pauses
	exit  vmm.Exit
}

var (
	poweredOff = vmm.Exit{Orderly: true, Reason: "the guest powered itself off", Status: &guest.ExecStatus{}}
	rebooted   = vmm.Exit{Orderly: true, Rebooted: true, Reason: "the guest rebooted", Status: &guest.ExecStatus{}}
	panicked   = vmm.Exit{Reason: "the guest's kernel panicked", Status: &guest.ExecStatus{}}
	wasKilled  = vmm.Exit{Reason: "killed", Status: &guest.ExecStatus{Signal: int(unix.SIGKILL)}}
)

func parseScript(cmdline string) (script, error) {
	var s script
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		if !strings.HasPrefix(key, "fake.") {
			continue
		}
		if err := s.apply(key[len("fake."):], value); err != nil {
			return script{}, fmt.Errorf("cmdline word %s: %w: %w", word, err, vmm.ErrInvalid)
		}
	}
	return s, nil
}

func (s *script) apply(key, value string) (err error) {
	switch key {
	case "boot":
		s.boot, err = time.ParseDuration(value)
	case "start":
		s.failStart, err = value == "fail", oneOf(value, "fail")
	case "agent":
		if slow, ok := strings.CutPrefix(value, "slow:"); ok {
			s.slow, err = time.ParseDuration(slow)
			return err
		}
		if deaf, ok := strings.CutPrefix(value, "deaf:"); ok {
			from, to, _ := strings.Cut(deaf, "-")
			if s.deafFrom, err = time.ParseDuration(from); err == nil {
				s.deafTo, err = time.ParseDuration(to)
			}
			return err
		}
		s.agent, err = value, oneOf(value, "never", "hang")
	case "stop":
		s.stop, err = value, oneOf(value, "hang", "ignore")
	case "listen":
		s.listen, err = parseListeners(value)
	case "disk":
		s.disk, err = strconv.ParseInt(value, 10, 64)
		if err == nil && (s.disk < 0 || s.disk > maxDisk) {
			err = fmt.Errorf("must be 0 to %d", maxDisk)
		}
	case "full":
		err = s.endAfter(value, end{full: true})
	case "snapshot":
		if s.failSave = value == "fail"; !s.failSave {
			s.slowSave, err = time.ParseDuration(value)
		}
	case "freeze":
		s.freeze, err = value, oneOf(value, "hang")
	case "drift":
		s.drift, err = strconv.ParseFloat(value, 64)
	case "clock":
		s.clock, err = value, oneOf(value, "old", "hang", "ntp")
	case "limit":
		s.failLimit, err = value == "fail", oneOf(value, "fail")
	case "exit":
		after, reason, found := strings.Cut(value, ":")
		if !found {
			reason = "the machine died as its cmdline told it to"
		}
		err = s.endAfter(after, end{exit: vmm.Exit{Reason: reason, Status: &guest.ExecStatus{Code: 1}}})
	case "poweroff":
		err = s.endAfter(value, end{exit: poweredOff})
	case "reboot":
		err = s.endAfter(value, end{exit: rebooted})
	case "panic":
		err = s.endAfter(value, end{panic: true, exit: panicked})
	default:
		err = fmt.Errorf("no such word")
	}
	return err
}

func (s *script) endAfter(after string, e end) (err error) {
	e.after, err = time.ParseDuration(after)
	s.ends = append(s.ends, e)
	return err
}

func oneOf(value string, words ...string) error {
	for _, w := range words {
		if value == w {
			return nil
		}
	}
	return fmt.Errorf("must be %s", strings.Join(words, " or "))
}

func parseListeners(list string) ([]guest.Listener, error) {
	var all []guest.Listener
	for i, entry := range strings.Split(list, ",") {
		parts := strings.SplitN(entry, "/", 4)
		port, err := strconv.Atoi(parts[0])
		if err != nil || len(parts) < 2 || port > 65535 {
			return nil, fmt.Errorf("%q is not PORT/PROTOCOL/PROCESS/COMMAND", entry)
		}
		l := guest.Listener{Protocol: parts[1], Address: "0.0.0.0", Port: port, PID: 100 + i}
		for j, text := range []*string{&l.Process, &l.Command} {
			if len(parts) > 2+j {
				// A cmdline cannot hold control characters, but a guest's text can.
				if *text, err = url.PathUnescape(parts[2+j]); err != nil {
					return nil, err
				}
			}
		}
		all = append(all, l)
	}
	return all, nil
}

// next returns the earliest end. filled reports whether the disk was full before.
func (s *script) next(filled bool) (first end, found bool) {
	for _, e := range s.ends {
		if (!found || e.after < first.after) && !(e.full && filled) {
			first, found = e, true
		}
	}
	return first, found
}

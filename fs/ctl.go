package fs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"banger/internal/value"
	"banger/vmm"
	"banger/vmm/guest"
)

// maxControl bounds the bytes of a command to ctl. It fits into the request of an agent's stream.
const maxControl = 60 << 10

func ctlShow(r *request) ([]byte, error) { return line(strconv.Itoa(r.session.number)) }

func ctlWrite(w *writeRequest, p []byte) (int, error) { return w.session.control(w, p) }

// control executes one command. It accepts all of p or nothing.
func (s *session) control(w *writeRequest, p []byte) (int, error) {
	name := w.snap().Name
	if len(p) > maxControl {
		return 0, fmt.Errorf("cannot write %d bytes to ctl of a session of %s, "+
			"at most %d at once: %w", len(p), name, maxControl, vmm.ErrTooBig)
	}
	if bytes.IndexByte(p, 0) >= 0 {
		return 0, fmt.Errorf("cannot write a NUL byte to ctl of a session of %s: %w",
			name, vmm.ErrInvalid)
	}
	word, text := cutControl(string(p))
	var err error
	if do, ok := controls[word]; ok {
		err = do(s, w, text)
	} else if set, ok := presets[word]; ok {
		err = s.preset(set, text)
	} else {
		err = fmt.Errorf("write run, argv or dial, before them dir, user, env, timeout, "+
			"tty or detach, after them signal, resize or eof, or close: %w", vmm.ErrInvalid)
	}
	if err != nil {
		return 0, fmt.Errorf("session %d of %s: cannot obey %.16q: %w", s.number, name, word, err)
	}
	w.vm.Fail(nil)
	return len(p), nil
}

// exactControls are the commands whose text is free bytes.
var exactControls = map[string]bool{"run": true, "dir": true, "user": true, "env": true}

// cutControl splits a command at its first blank. One newline at its end belongs to neither part.
// Of exactControls every other byte of the text counts.
func cutControl(command string) (word, text string) {
	command = strings.TrimLeft(strings.TrimSuffix(command, "\n"), " \t\n")
	word, text, _ = strings.Cut(command, " ")
	if word = strings.TrimSpace(word); !exactControls[word] {
		text = strings.TrimSpace(text)
	}
	return word, text
}

// controls are the commands that start, change or end what runs.
var controls = map[string]func(*session, *writeRequest, string) error{
	"run": func(s *session, w *writeRequest, text string) error {
		if strings.TrimSpace(text) == "" {
			return fmt.Errorf("write run COMMAND LINE: %w", vmm.ErrInvalid)
		}
		return s.start(w, func(c *guest.ExecRequest) error {
			c.Argv = []string{"/bin/sh", "-c", text}
			return nil
		})
	},
	"argv": func(s *session, w *writeRequest, text string) error {
		return s.start(w, func(c *guest.ExecRequest) (err error) {
			c.Argv, err = parseArgv(text)
			return err
		})
	},
	"dial": func(s *session, w *writeRequest, text string) error {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("%.64q is not a port from 1 to 65535: %w", text, vmm.ErrInvalid)
		}
		return s.start(w, func(c *guest.ExecRequest) error {
			*c = guest.ExecRequest{Dial: int(port), Timeout: c.Timeout}
			return nil
		})
	},
	"signal": func(s *session, w *writeRequest, text string) error {
		n, err := guest.ParseSignal(text)
		if err != nil {
			return err
		}
		return s.running(func(e *guest.Exec) error { return e.Signal(w.ctx, n) })
	},
	"resize": func(s *session, w *writeRequest, text string) error {
		cols, rows, err := parseSize(text)
		if err != nil {
			return err
		}
		return s.running(func(e *guest.Exec) error { return e.Resize(w.ctx, cols, rows) })
	},
	"eof": func(s *session, w *writeRequest, _ string) error {
		return s.running(func(e *guest.Exec) error { return e.EndInput(w.ctx) })
	},
	"close": func(s *session, _ *writeRequest, _ string) error {
		s.close()
		return nil
	},
}

// presets are the commands that prepare what will run.
var presets = map[string]func(*guest.ExecRequest, string) error{
	"dir": func(c *guest.ExecRequest, text string) error {
		text = strings.TrimLeft(text, " \t") // a path begins with a slash
		if !strings.HasPrefix(text, "/") {
			return fmt.Errorf("%.64q is not an absolute path: %w", text, vmm.ErrInvalid)
		}
		c.Dir = text
		return nil
	},
	"user": func(c *guest.ExecRequest, text string) error { c.User = text; return nil },
	"env":  addEnv,
	"timeout": func(c *guest.ExecRequest, text string) error {
		d, err := value.ParseDuration(text)
		if err == nil {
			c.Timeout = max(d, 0) // NoLimit is none
		}
		return err
	},
	"tty": func(c *guest.ExecRequest, text string) error {
		cols, rows, err := parseSize(cmp.Or(text, "80x24"))
		if err != nil {
			return err
		}
		if c.Detach {
			return errDetachedTerminal
		}
		c.Cols, c.Rows = cols, rows
		return nil
	},
	"detach": func(c *guest.ExecRequest, _ string) error {
		if c.Cols > 0 {
			return errDetachedTerminal
		}
		c.Detach = true
		return nil
	},
}

// preset changes what will run.
func (s *session) preset(set func(*guest.ExecRequest, string) error, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starting || s.exec != nil {
		return fmt.Errorf("it runs already: %w", vmm.ErrBusy)
	}
	return set(&s.command, text)
}

func addEnv(c *guest.ExecRequest, text string) error {
	if name, _, ok := strings.Cut(text, "="); !ok || name == "" {
		return fmt.Errorf("%.64q is not NAME=VALUE: %w", text, vmm.ErrInvalid)
	}
	total := len(text)
	for _, e := range c.Env {
		total += len(e)
	}
	if total > maxControl {
		return fmt.Errorf("the environment would have %d bytes, %d are allowed: %w",
			total, maxControl, vmm.ErrTooBig)
	}
	c.Env = append(c.Env, text)
	return nil
}

// parseArgv reads a JSON list of strings, see value.Raw.
func parseArgv(text string) (argv []string, err error) {
	var list []value.Raw
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) == 0 || list[0] == "" {
		return nil, fmt.Errorf("%.64q is not a list such as [\"uname\",\"-a\"]: %w",
			text, vmm.ErrInvalid)
	}
	for _, a := range list {
		if strings.IndexByte(string(a), 0) >= 0 {
			return nil, fmt.Errorf("an argument has a NUL byte: %w", vmm.ErrInvalid)
		}
		argv = append(argv, string(a))
	}
	return argv, nil
}

// parseSize reads 80x24, columns and rows.
func parseSize(text string) (cols, rows int, err error) {
	c, r, _ := strings.Cut(text, "x")
	w, werr := strconv.ParseUint(c, 10, 16)
	h, herr := strconv.ParseUint(r, 10, 16)
	if errors.Join(werr, herr) != nil || w == 0 || h == 0 {
		return 0, 0, fmt.Errorf("%.64q is not a size such as 80x24: %w", text, vmm.ErrInvalid)
	}
	return int(w), int(h), nil
}

var errDetachedTerminal = fmt.Errorf("a detached command has no terminal: %w", vmm.ErrInvalid)

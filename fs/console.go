package fs

import (
	"fmt"
	"io"

	"banger/vmm"
)

// maxTerminals bounds the terminals of one VM. Each keeps output of the guest.
const maxTerminals = 64

// consoleOpen opens the output so far or, read-write, a terminal for the output from now on.
func consoleOpen(r *openRequest) (handle, error) {
	r.vm.Touch()
	if !r.readWrite {
		return logOpen(vmm.ConsoleFile)(r)
	}
	c, err := r.console()
	if err != nil {
		return nil, err
	}
	all, serial := &r.server.terminals, r.vm.Serial()
	if !all.acquire(serial) {
		return nil, r.tooMany("%s has %d terminals: close some: %w",
			r.snap().Name, all.most, vmm.ErrBusy)
	}
	return terminal{c.Subscribe(), func() { all.release(serial) }}, nil
}

// tooMany returns the refusal of an open, and keeps it in the VM's `error`.
func (r *openRequest) tooMany(format string, args ...any) error {
	err := fmt.Errorf("cannot open "+r.file.name+": "+format, args...)
	r.vm.Fail(err)
	return err
}

func (r *request) console() (vmm.Console, error) {
	s := r.snap()
	if s.Machine == nil {
		return nil, fmt.Errorf("cannot use the console of %s, it is %s: %w",
			s.Name, s.State, vmm.ErrNotRunning)
	}
	c := s.Machine.Console()
	if c == nil {
		return nil, fmt.Errorf("%s has no console: %w", s.Name, vmm.ErrUnsupported)
	}
	return c, nil
}

func consoleWrite(w *writeRequest, p []byte) (int, error) {
	c, err := w.console()
	if err != nil {
		return 0, err
	}
	ctx, cancel := w.patience()
	defer cancel()
	n, err := c.Write(ctx, p)
	return n, w.again(err)
}

// terminal is a console opened read-write. Its offsets mean nothing.
type terminal struct {
	reader vmm.ConsoleReader
	end    func()
}

func (t terminal) read(c *call, p []byte, _ int64) ([]byte, error) {
	ctx, cancel := c.patience()
	defer cancel()
	n, err := t.reader.Read(ctx, p)
	if err == io.EOF {
		err = nil
	}
	return p[:n], c.again(err)
}

func (t terminal) close() {
	t.reader.Close()
	t.end()
}

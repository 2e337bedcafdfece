package fs

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"banger/vmm"
)

// waiter blocks in its first read and returns one line.
type waiter struct {
	wait func(context.Context) (string, error)
	mu   sync.Mutex // guards text
	text capture
}

func (w *waiter) read(c *call, p []byte, off int64) ([]byte, error) {
	w.mu.Lock()
	text := w.text
	w.mu.Unlock()
	if text == nil {
		ctx, cancel := c.patience()
		defer cancel()
		answer, err := w.wait(ctx)
		if err != nil {
			return nil, c.again(err)
		}
		text = capture(answer + "\n")
		w.mu.Lock()
		w.text = text
		w.mu.Unlock()
	}
	return text.part(len(p), off), nil
}

func (w *waiter) close() {}

// secondsWaiter returns a waiter whose line is the seconds that the wait took.
func secondsWaiter(wait func(context.Context) (time.Duration, error)) *waiter {
	return &waiter{wait: func(ctx context.Context) (string, error) {
		took, err := wait(ctx)
		return strconv.FormatFloat(took.Seconds(), 'f', 2, 64), err
	}}
}

func waitState(want vmm.State) func(*openRequest) (handle, error) {
	return func(r *openRequest) (handle, error) {
		v, m, began := r.vm, r.server.o.Manager, time.Now()
		return secondsWaiter(func(ctx context.Context) (time.Duration, error) {
			for {
				changed := v.Changed()
				s := v.Snapshot()
				switch {
				case m.BySerial(v.Serial()) == nil:
					return 0, fmt.Errorf("%s was removed: %w", s.Name, vmm.ErrNotFound)
				case s.State == want:
					return time.Since(began), nil
				case s.State == vmm.Failed:
					return 0, fmt.Errorf("%s failed: %s: %w", s.Name, s.Error, vmm.ErrGone)
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
		}), nil
	}
}

func waitHealthy(r *openRequest) (handle, error) {
	v, c := r.vm, r.server.o.Collector
	return secondsWaiter(func(ctx context.Context) (time.Duration, error) {
		return c.WaitHealthy(ctx, v)
	}), nil
}

func waitPort(r *openRequest) (handle, error) {
	v, c, port := r.vm, r.server.o.Collector, int(r.param)
	return secondsWaiter(func(ctx context.Context) (time.Duration, error) {
		return c.WaitPort(ctx, v, port)
	}), nil
}

// portFind knows the ports from 1 to 65535, without leading zeros.
func portFind(r *request, name string) (dirent, bool) {
	port, err := strconv.ParseUint(name, 10, 16)
	ok := err == nil && port > 0 && name == strconv.FormatUint(port, 10)
	return dirent{name: name, serial: r.vm.Serial(), param: uint16(port)}, ok
}

func waitImage(r *openRequest) (handle, error) {
	images, number := r.server.o.Images, r.image
	return secondsWaiter(func(ctx context.Context) (time.Duration, error) {
		return images.Wait(ctx, number)
	}), nil
}

package fs

import (
	"context"
	"sync"
	"time"
)

// blocking gives the request a context that ends with the mount, or when a
// signal ends the caller's system call. The caller calls the function it gives.
func (r *request) blocking() func() {
	l := &lazyContext{Context: r.ctx, server: r.server, pid: r.pid}
	r.ctx = l
	return l.stop
}

// lazyContext watches for the end of a request from when somebody waits for it: most
// requests are answered at once, and the goroutine that watches would cost more than the answer.
type lazyContext struct {
	context.Context // of the request
	server          *Server
	pid             uint32

	mu    sync.Mutex // guards what follows
	ctx   context.Context
	clear func()
}

// Done implements context.Context.
func (l *lazyContext) Done() <-chan struct{} { return l.watch().Done() }

// Err implements context.Context: nil while nobody has waited.
func (l *lazyContext) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		return nil
	}
	return l.ctx.Err()
}

func (l *lazyContext) watch() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx != nil {
		return l.ctx
	}
	ctx, cancel := context.WithCancel(l.server.ctx)
	stop := context.AfterFunc(l.Context, func() {
		// The kernel tells of the first signal only, whichever it is: a shell's
		// child that ends must not end the shell's write.
		for harmless(l.pid) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(signalLook):
			}
		}
		cancel()
	})
	l.ctx, l.clear = ctx, func() { stop(); cancel() }
	return ctx
}

// stop ends the watch, if one was begun.
func (l *lazyContext) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clear != nil {
		l.clear()
	}
}

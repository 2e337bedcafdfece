package fs

import (
	"context"
	"sync"
	"time"
)

// blocking sets a context that ends with the mount, or when a signal ends the system call. The
// caller calls the function that blocking returns.
func (c *call) blocking() func() {
	l := &lazyContext{Context: c.ctx, server: c.server, pid: c.pid}
	c.ctx = l
	return l.stop
}

// lazyContext watches for the end of a request only when something waits for it. Most requests are
// answered at once, and the watching goroutine would cost more than the answer.
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

// Err implements context.Context: nil before the first wait.
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
		// The kernel reports the first signal only, whichever it is: the end of a shell's child
		// must not end the shell's write.
		for harmless(l.pid) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(signalEvery):
			}
		}
		cancel()
	})
	l.ctx, l.clear = ctx, func() { stop(); cancel() }
	return ctx
}

// stop ends the watch, if one began.
func (l *lazyContext) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clear != nil {
		l.clear()
	}
}

package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/host"
	"golang.org/x/time/rate"
)

const (
	mostBytes = 4 << 20 // of the file
	keptBytes = 3 << 20 // of a file that was full
	mostQueue = 1 << 19 // bytes that wait for the disk; with keptBytes, less than mostBytes

	patience  = time.Second     // that a command waits for the disk
	lostEvery = time.Second     // how often lost lines are counted
	syncAfter = 5 * time.Second // of the first line that is not yet durable
)

// Options of a Log.
type Options struct {
	Path string
	Log  *slog.Logger
	// User returns the user who is responsible for a uid.
	User func(uid uint32) uint32
}

// Log is the file. Lock order: fileMu, then readersMu. Nothing else is locked under mu.
type Log struct {
	o   Options // immutable
	uid uint32  // of the daemon

	mu       sync.Mutex // guards what follows
	queue    *batch     // nil while nothing waits
	limiters map[payer]*rate.Limiter
	lost     map[uint32]uint64 // lines of users
	counting bool              // a timer will write of them
	closed   bool

	wake, dirty chan struct{} // hold one to wake the writer, or the syncer
	closing     chan struct{} // closed by Close
	work        sync.WaitGroup
	late        atomic.Bool // the disk did not answer in time
	size        atomic.Int64
	changed     atomic.Int64 // Unix nanoseconds

	fileMu   sync.Mutex // guards what follows
	f        *os.File
	failing  error     // of the last write
	shrunk   time.Time // when shrinking failed last
	noShrink error     // why

	readersMu sync.Mutex // guards readers
	readers   map[*Reader]struct{}
}

// batch is lines that are written at once.
type batch struct {
	text []byte
	of   map[uint32]uint64 // count of lines by user
	done chan struct{}     // closed when they are written or lost
}

// Open opens the file or makes it. The caller closes the result.
func Open(o Options) (*Log, error) {
	if err := host.MakeDirs(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, err
	}
	f, err := host.OpenPrivate(o.Path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the audit: %w", err)
	}
	l := &Log{
		o: o, uid: uint32(os.Getuid()), f: f,
		limiters: make(map[payer]*rate.Limiter), lost: make(map[uint32]uint64),
		wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), closing: make(chan struct{}),
		readers: make(map[*Reader]struct{}),
	}
	if err := l.repair(); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot read the audit: %w", err)
	}
	l.work.Go(l.write)
	l.work.Go(l.sync)
	return l, nil
}

// repair removes what a power failure left: a part of a line at the end, and bytes that were never
// written.
func (l *Log) repair() error {
	text, err := io.ReadAll(l.f)
	if err != nil {
		return err
	}
	whole := int64(bytes.LastIndexByte(text, '\n') + 1)
	if err := l.f.Truncate(whole); err != nil {
		return err
	}
	info, err := l.f.Stat()
	if err != nil {
		return err
	}
	l.size.Store(whole)
	l.changed.Store(info.ModTime().UnixNano())
	if bytes.IndexByte(text[:whole], 0) >= 0 {
		return l.shrinkLocked() // nobody else has the Log yet
	}
	return nil
}

// Add writes a line, which it asks for unless the user's rate of that kind is exceeded. It returns
// when the line is in the file. It waits at most a second for a disk that does not answer, and not
// at all when stop is closed. A user who makes changes very fast waits as long. Add does nothing on
// nil.
//
// committed is for a Change that the same disk has just made durable: Add then writes the line
// itself, which is faster, and holds up nobody for being fast.
func (l *Log) Add(stop <-chan struct{}, kind Kind, uid uint32, committed bool, line func() Line) {
	if l == nil {
		return
	}
	user := l.o.User(uid)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	limiter := l.limiterLocked(payer{user, kind})
	if kind != Change && !limiter.Allow() {
		l.lostLocked(user, 1)
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	if kind == Change && user != 0 && user != l.uid {
		delay := limiter.Reserve().Delay()
		if !committed && delay > 0 {
			pause(stop, min(delay, slowest))
		}
	}
	x := line()
	if committed && kind == Change && l.writeNow(user, &x) {
		return
	}
	l.mu.Lock()
	b := l.takeLocked(user, &x)
	l.mu.Unlock()
	l.await(stop, b)
}

// AddOwn is Add for what the daemon does by itself with something of an owner. It sets the line's
// UID and Comm. It does not wait for the file.
func (l *Log) AddOwn(owner uint32, line Line) {
	line.UID, line.Comm = l.uid, daemon
	user := l.o.User(owner)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if !l.limiterLocked(payer{user, Own}).Allow() {
		l.lostLocked(user, 1)
		return
	}
	l.takeLocked(l.uid, &line)
}

// pause waits until stop is closed, at most d.
func pause(stop <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-stop:
	}
}

// await waits until a batch is written, unless the disk is known to be late.
func (l *Log) await(stop <-chan struct{}, b *batch) {
	if b == nil || l.late.Load() {
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-b.done:
	case <-stop:
	case <-t.C:
		l.late.Store(true)
	}
}

// takeLocked is queueLocked for one line. It returns nil if there is no room.
func (l *Log) takeLocked(user uint32, line *Line) *batch {
	if l.closed || l.queue != nil && len(l.queue.text) >= mostQueue {
		l.lostLocked(user, 1)
		return nil
	}
	return l.queueLocked(user, line, 1)
}

// queueLocked adds a line of a user, which stands for that many, to the lines that wait.
func (l *Log) queueLocked(user uint32, line *Line, lines uint64) *batch {
	if l.queue == nil {
		l.queue = &batch{of: make(map[uint32]uint64), done: make(chan struct{})}
	}
	b := l.queue
	b.text = line.append(b.text, time.Now())
	b.of[user] += lines
	wake(l.wake)
	return b
}

// wake leaves one in the channel.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lostLocked counts lines of a user that are not written.
func (l *Log) lostLocked(user uint32, lines uint64) {
	l.lost[user] += lines
	if !l.counting && !l.closed {
		l.counting = true
		time.AfterFunc(lostEvery, l.countLost)
	}
}

// countLost writes a line for each user with lost lines.
func (l *Log) countLost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counting = false
	if l.closed {
		return
	}
	l.countLostLocked()
	l.forgetLocked(time.Now())
}

func (l *Log) countLostLocked() {
	lost := l.lost
	l.lost = make(map[uint32]uint64)
	for user, n := range lost {
		line := lostLine(user, n)
		l.queueLocked(user, &line, n)
	}
}

// Close writes what waits, syncs and closes the file. It waits for the disk until ctx ends.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.countLostLocked()
	l.closed = true
	close(l.wake)
	close(l.closing)
	l.mu.Unlock()
	ended := make(chan error, 1)
	go func() { // ends with the disk's answer, at the latest with the process
		l.work.Wait()
		l.fileMu.Lock()
		defer l.fileMu.Unlock()
		err := l.f.Sync()
		l.f.Close()
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

package audit

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"banger/internal/host"
)

// write is the goroutine that writes, until Close.
func (l *Log) write() {
	for open := true; open; {
		_, open = <-l.wake
		l.mu.Lock()
		b := l.queue
		l.queue = nil
		l.mu.Unlock()
		if b == nil {
			continue
		}
		l.fileMu.Lock()
		err := l.writeLocked(b)
		l.fileMu.Unlock()
		l.late.Store(false)
		l.wrote(b, err)
	}
}

// writeNow writes a line without the writer, and reports whether it did. It does so if nothing
// waits, there is room, and the disk is not known to be late.
func (l *Log) writeNow(user uint32, line *Line) bool {
	if l.late.Load() || !l.fileMu.TryLock() {
		return false
	}
	l.mu.Lock()
	ready := l.queue == nil && !l.closed
	l.mu.Unlock()
	text := line.append(nil, time.Now())
	if !ready || l.size.Load()+int64(len(text)) > mostBytes {
		l.fileMu.Unlock()
		return false
	}
	b := &batch{text: text, of: map[uint32]uint64{user: 1}, done: make(chan struct{})}
	err := l.writeLocked(b)
	l.fileMu.Unlock()
	l.wrote(b, err)
	return true
}

// wrote ends a batch, of which lines are lost after an error.
func (l *Log) wrote(b *batch, err error) {
	l.report(err)
	if err == nil {
		wake(l.dirty)
	} else {
		l.mu.Lock()
		for user, lines := range b.of {
			l.lostLocked(user, lines)
		}
		l.mu.Unlock()
	}
	close(b.done)
}

// writeLocked appends lines to the file and to what its readers have. After an error the file is as
// before.
func (l *Log) writeLocked(b *batch) error {
	size := l.size.Load()
	if size+int64(len(b.text)) > mostBytes {
		if l.noShrink == nil || time.Since(l.shrunk) > shrinkAgain {
			l.noShrink = l.shrinkLocked()
			l.shrunk = time.Now()
		}
		if l.noShrink != nil {
			return l.noShrink
		}
		size = l.size.Load()
	}
	if _, err := l.f.WriteAt(b.text, size); err != nil {
		_ = l.f.Truncate(size) // what is left is written over, or cut off by the next daemon
		return err
	}
	l.size.Store(size + int64(len(b.text)))
	l.changed.Store(time.Now().UnixNano())
	l.readersMu.Lock()
	defer l.readersMu.Unlock()
	for r := range l.readers {
		r.add(b.text)
	}
	return nil
}

// shrinkLocked replaces the file by one with the newest lines of each user.
func (l *Log) shrinkLocked() error {
	text, err := l.textLocked()
	if err != nil {
		return err
	}
	kept := fair(text, keptBytes, func(line []byte) (holder, bool) {
		uid, own, ok := uidOf(line)
		return holder{l.o.User(uid), own && uid == l.uid}, ok
	})
	err = host.ReplaceFile(l.o.Path, 0o600, func(f *os.File) error {
		_, err := f.Write(kept)
		return err
	})
	if err != nil {
		return err
	}
	f, err := host.OpenPrivate(l.o.Path)
	if err != nil {
		return err
	}
	l.f.Close()
	l.f = f
	l.size.Store(int64(len(kept)))
	return nil
}

func (l *Log) textLocked() ([]byte, error) {
	text := make([]byte, l.size.Load())
	_, err := l.f.ReadAt(text, 0)
	if err == io.EOF {
		err = fmt.Errorf("the file was cut: %w", io.ErrUnexpectedEOF)
	}
	return text, err
}

// report logs when writing begins to fail, and when it works again.
func (l *Log) report(err error) {
	l.fileMu.Lock()
	before := l.failing
	l.failing = err
	l.fileMu.Unlock()
	switch {
	case err != nil && before == nil:
		l.o.Log.Error("the audit cannot be written, its lines are only counted", "err", err)
	case err == nil && before != nil:
		l.o.Log.Info("the audit is written again")
	}
}

// sync is the goroutine that makes lines durable, some seconds after they were written.
func (l *Log) sync() {
	for {
		select {
		case <-l.dirty:
		case <-l.closing:
			return
		}
		pause(l.closing, syncAfter)
		l.fileMu.Lock()
		f := l.f
		l.fileMu.Unlock()
		_ = f.Sync() // a file that was replaced meanwhile is durable
	}
}

// Size returns how many bytes the file has, and when the last line was written. It does not block.
func (l *Log) Size() (int64, time.Time) {
	return l.size.Load(), time.Unix(0, l.changed.Load())
}

// maxReaderText bounds the bytes that a Reader keeps. Beyond it the oldest are dropped.
const maxReaderText = 8 << 20

// shrinkAgain is how long after a failure shrinking is tried again.
const shrinkAgain = time.Second

// Reader has the text of the file, to which all later lines are added.
type Reader struct {
	l *Log

	mu      sync.Mutex // guards what follows
	text    []byte
	dropped int64
}

// Reader reads the file. The caller closes the result. It may wait for the disk.
func (l *Log) Reader() (*Reader, error) {
	l.fileMu.Lock()
	defer l.fileMu.Unlock()
	text, err := l.textLocked()
	if err != nil {
		return nil, fmt.Errorf("cannot read the audit: %w", err)
	}
	r := &Reader{l: l, text: text}
	l.readersMu.Lock()
	defer l.readersMu.Unlock()
	l.readers[r] = struct{}{}
	return r, nil
}

func (r *Reader) add(lines []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, lines...)
	if len(r.text) > maxReaderText {
		drop := len(r.text) - maxReaderText/2
		drop += bytes.IndexByte(r.text[drop:], '\n') + 1
		r.text = bytes.Clone(r.text[drop:])
		r.dropped += int64(drop)
	}
}

// Text returns what was read and what was added since, and how many bytes were dropped before it.
// The returned text does not change later.
func (r *Reader) Text() (text []byte, dropped int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text, r.dropped
}

// Close ends the Reader. Its text stays.
func (r *Reader) Close() {
	r.l.readersMu.Lock()
	defer r.l.readersMu.Unlock()
	delete(r.l.readers, r)
}

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/printable"
)

const (
	copyWorkers = 16      // files at once: each waits for the way to the guest and back
	copyDirs    = 4       // directories at once: the kernel makes names in one after the other
	copyBuffer  = 1 << 20 // bytes; what the mount takes at once
	copyBuffers = 3       // of a file that is longer
	maxDepth    = 256     // directories in each other, each of which is two open descriptors
	maxEntries  = 1 << 20 // names in one directory: a guest can say any number
	maxTold     = 20      // failures that are told one by one
)

// copier copies a tree. What the source says is trusted for nothing: every name is opened relative to its open directory and no symbolic link is
// followed, on either side, so that a guest that changes its files meanwhile cannot lead out of the destination.
type copier struct {
	std      stdio
	toGuest  bool // else no setuid and setgid bits are kept: the files become those of who copies
	sync     bool // leave alone what has the same type, size and time
	checksum bool // with sync: compare contents in place of times
	remove   bool // with sync: remove what the source has not
	dryRun   bool // with sync: only tell

	slots chan struct{}
	dirs  chan struct{}
	work  sync.WaitGroup
	out   sync.Mutex // held while a line is printed

	files, bytes, copied, removed, failed atomic.Int64
	fatal                                 atomic.Pointer[error] // nothing more can be copied
}

// dirPair is a directory of the source and the one that becomes its copy, while anything in them is still to be done.
type dirPair struct {
	src, dst *os.File // dst is nil in a dry run where there is none
	path     string   // for people
	parent   *dirPair
	name     string // in the parent's copy
	stat     unix.Stat_t
	users    atomic.Int64
}

func newCopier(std stdio) *copier {
	return &copier{std: std, slots: make(chan struct{}, copyWorkers), dirs: make(chan struct{}, copyDirs-1)}
}

// fail tells of what could not be copied. The others are still tried, unless nothing can be any more.
func (c *copier) fail(path string, err error) {
	switch errnoOf(err) {
	case syscall.EHOSTDOWN, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENOTCONN, syscall.ECONNABORTED, syscall.ENOSPC, syscall.EDQUOT:
		c.fatal.CompareAndSwap(nil, &err)
	}
	if n := c.failed.Add(1); n <= maxTold {
		c.say(c.std.err, "banger: %s", explain("cannot copy "+path, "", err))
	}
}

func (c *copier) say(w io.Writer, format string, args ...any) {
	c.out.Lock()
	defer c.out.Unlock()
	if f, ok := terminal(c.std.err); ok {
		fmt.Fprint(f, "\r\x1b[K") // the line of progress
	}
	fmt.Fprintln(w, printable.Message(fmt.Sprintf(format, args...))) // names are the guest's
}

// result waits for all that is under way and says how it went.
func (c *copier) result() error {
	c.work.Wait()
	n := c.failed.Load()
	if n == 0 {
		return nil
	}
	code := exitFailed
	if err := c.fatal.Load(); err != nil {
		code = codeOf(*err)
	}
	return &failure{code, fmt.Errorf("%d could not be copied", n)}
}

func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err != unix.EINTR {
			return v, err
		}
	}
}

func openat(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openDirAt(dir *os.File, name string) (*os.File, error) {
	return openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func lstatAt(dir *os.File, name string) (st unix.Stat_t, err error) {
	_, err = retry(func() (int, error) { return 0, unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

func setTimes(dir *os.File, name string, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(int(dir.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// setOpenTimes asks for no name: the mount would look up the way to it.
func setOpenTimes(f *os.File, st *unix.Stat_t) error {
	times := [2]unix.Timespec{st.Atim, st.Mtim}
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); e != 0 { // futimens(3)
		return e
	}
	return nil
}

func kindOf(st *unix.Stat_t) uint32 { return st.Mode & unix.S_IFMT }

// permissions are those that a copy gets.
func (c *copier) permissions(st *unix.Stat_t) uint32 {
	if c.toGuest {
		return st.Mode & 0o7777
	}
	return st.Mode & 0o1777
}

// entry copies what has that name in src to that name in dst. The caller has a use of pair, which is the parent of both, or nil.
func (c *copier) entry(src *os.File, from string, dst *os.File, to string, shown string, parent *dirPair, depth int) {
	if c.fatal.Load() != nil {
		return
	}
	st, err := lstatAt(src, from)
	if err != nil {
		c.fail(shown, err)
		return
	}
	switch kindOf(&st) {
	case unix.S_IFDIR:
		c.dir(src, from, dst, to, shown, parent, st, depth)
	case unix.S_IFREG, unix.S_IFLNK:
		if parent != nil {
			parent.users.Add(1)
		}
		c.slots <- struct{}{}
		c.work.Add(1)
		go func() {
			defer func() {
				if parent != nil {
					c.leave(parent)
				}
				<-c.slots
				c.work.Done()
			}()
			if err := c.leaf(src, from, dst, to, shown, &st); err != nil {
				c.fail(shown, err)
			}
		}()
	default:
		c.say(c.std.err, "banger: %s is left out: it is neither a file nor a directory nor a symbolic link", shown)
	}
}

// dir copies a directory and what is in it.
func (c *copier) dir(src *os.File, from string, dst *os.File, to, shown string, parent *dirPair, st unix.Stat_t, depth int) {
	if depth >= maxDepth {
		c.fail(shown, unix.ELOOP)
		return
	}
	p := &dirPair{path: shown, parent: parent, name: to, stat: st}
	p.users.Store(1)
	var err error
	if p.src, err = openDirAt(src, from); err != nil {
		c.fail(shown, err)
		return
	}
	if dst != nil {
		if old, err := lstatAt(dst, to); err == nil && kindOf(&old) == unix.S_IFDIR {
			// It has what it had, and what is copied besides.
		} else if c.dryRun {
			c.say(c.std.out, "copy %s", shown)
		} else if err = unix.Mkdirat(int(dst.Fd()), to, c.permissions(&st)|0o700); err != nil && err != unix.EEXIST {
			p.src.Close()
			c.fail(shown, err)
			return
		}
		p.dst, err = openDirAt(dst, to)
		if err != nil && !(c.dryRun && err == unix.ENOENT) {
			p.src.Close()
			c.fail(shown, err)
			return
		}
		if err != nil {
			p.dst = nil
		}
	}
	if parent != nil {
		parent.users.Add(1)
	}
	c.work.Add(1)
	inside := func() {
		defer c.work.Done()
		c.inside(p, depth)
		c.leave(p)
	}
	select {
	case c.dirs <- struct{}{}:
		go func() {
			inside()
			<-c.dirs
		}()
	default:
		inside()
	}
}

// inside copies what is in a directory.
func (c *copier) inside(p *dirPair, depth int) {
	seen, count := map[string]bool{}, 0
	for {
		names, err := p.src.Readdirnames(256)
		for _, name := range names {
			if c.remove {
				seen[name] = true
			}
			c.entry(p.src, name, p.dst, name, path.Join(p.path, name), p, depth+1)
		}
		if count += len(names); err == nil && count > maxEntries {
			err = unix.E2BIG
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			c.fail(p.path, err)
			return // and nothing is removed for want of its name
		}
	}
	if !c.remove || p.dst == nil || c.fatal.Load() != nil {
		return
	}
	names, err := p.dst.Readdirnames(-1)
	if err != nil {
		c.fail(p.path, err)
		return
	}
	for _, name := range names {
		if !seen[name] {
			c.removeAll(p.dst, name, path.Join(p.path, name), depth)
		}
	}
}

// leave ends a use of a directory; after the last its mode and times are set: what was made in it would change them.
func (c *copier) leave(p *dirPair) {
	if p.users.Add(-1) > 0 {
		return
	}
	if p.dst != nil && !c.dryRun {
		err := unix.Fchmod(int(p.dst.Fd()), c.permissions(&p.stat))
		if err == nil {
			err = setTimes(p.dst, ".", &p.stat)
		}
		if err != nil {
			c.fail(p.path, err)
		}
		p.dst.Close()
	}
	p.src.Close()
	if p.parent != nil {
		c.leave(p.parent)
	}
}

// sameTime compares to the second where a side has no more.
func (c *copier) sameTime(a, b *unix.Stat_t) bool {
	return a.Mtim.Sec == b.Mtim.Sec && (a.Mtim.Nsec == b.Mtim.Nsec || a.Mtim.Nsec == 0 || b.Mtim.Nsec == 0)
}

// leaf copies a file or a symbolic link.
func (c *copier) leaf(src *os.File, from string, dst *os.File, to, shown string, st *unix.Stat_t) error {
	c.files.Add(1)
	if !c.sync && kindOf(st) == unix.S_IFREG { // mostly there is none yet, and to look would cost a way to the guest and back
		c.copied.Add(1)
		if err := c.file(src, from, dst, to, st, true); err != unix.EEXIST {
			return err
		}
		c.copied.Add(-1)
	}
	var old unix.Stat_t
	err := error(unix.ENOENT)
	if dst != nil {
		old, err = lstatAt(dst, to)
	}
	if err != nil && err != unix.ENOENT {
		return err
	}
	there := err == nil
	if there && c.sync {
		same, err := c.same(src, from, dst, to, st, &old)
		if err != nil {
			return err
		}
		if same {
			if mode := c.permissions(st); kindOf(st) == unix.S_IFREG && mode != old.Mode&0o7777 && !c.dryRun {
				return unix.Fchmodat(int(dst.Fd()), to, mode, 0)
			}
			return nil
		}
	}
	c.copied.Add(1)
	if c.dryRun {
		c.say(c.std.out, "copy %s", shown)
		return nil
	}
	if there && kindOf(&old) == unix.S_IFDIR {
		return unix.EISDIR
	}
	if there && (kindOf(&old) != unix.S_IFREG || kindOf(st) != unix.S_IFREG) {
		if err := unix.Unlinkat(int(dst.Fd()), to, 0); err != nil {
			return err
		}
	}
	if kindOf(st) == unix.S_IFLNK {
		target, err := readlinkAt(src, from)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, int(dst.Fd()), to); err != nil {
			return err
		}
		return setTimes(dst, to, st)
	}
	return c.file(src, from, dst, to, st, false)
}

func readlinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := retry(func() (int, error) { return unix.Readlinkat(int(dir.Fd()), name, buf) })
	return string(buf[:max(0, n)]), err
}

// same reports whether a copy can be left as it is.
func (c *copier) same(src *os.File, from string, dst *os.File, to string, st, old *unix.Stat_t) (bool, error) {
	switch {
	case kindOf(st) != kindOf(old):
		return false, nil
	case kindOf(st) == unix.S_IFLNK:
		a, err := readlinkAt(src, from)
		if err != nil {
			return false, err
		}
		b, err := readlinkAt(dst, to)
		return a == b, err
	case st.Size != old.Size:
		return false, nil
	case !c.checksum:
		return c.sameTime(st, old), nil
	}
	a, err := c.sum(src, from)
	if err != nil {
		return false, err
	}
	b, err := c.sum(dst, to)
	return bytes.Equal(a, b), err
}

// openFile opens a regular file to be read; nothing else is waited for.
func openFile(dir *os.File, name string) (*os.File, error) {
	f, err := openat(dir, name, unix.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := regular(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func regular(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if kindOf(&st) != unix.S_IFREG {
		return unix.EINVAL
	}
	return nil
}

func (c *copier) sum(dir *os.File, name string) ([]byte, error) {
	f, err := openFile(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyBuffer(plainWriter{h}, plainReader{f}, make([]byte, copyBuffer))
	return h.Sum(nil), err
}

// file copies a regular file, its mode and its times; fresh: EEXIST if anything has the name.
func (c *copier) file(src *os.File, from string, dst *os.File, to string, st *unix.Stat_t, fresh bool) (err error) {
	in, err := openFile(src, from)
	if err != nil {
		return err
	}
	defer in.Close()
	mode := c.permissions(st)
	how := unix.O_TRUNC
	if fresh {
		how = unix.O_EXCL
	}
	out, err := openat(dst, to, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY|how, mode)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	made := unix.Stat_t{Mode: unix.S_IFREG | mode}
	if !fresh {
		if err := unix.Fstat(int(out.Fd()), &made); err != nil {
			return err
		}
		if kindOf(&made) != unix.S_IFREG {
			return unix.EINVAL
		}
	}
	if err := c.data(in, out, st.Size); err != nil {
		return err
	}
	if made.Mode&0o7777 != mode {
		if err := unix.Fchmod(int(out.Fd()), mode); err != nil {
			return err
		}
	}
	return setOpenTimes(out, st)
}

// data copies contents to their end. Of a long file some is read while some is written.
func (c *copier) data(in, out *os.File, size int64) error {
	if size < copyBuffer {
		_, err := io.CopyBuffer(plainWriter{counted{out, &c.bytes}}, plainReader{in}, make([]byte, min(copyBuffer, size+4096)))
		return err
	}
	full, empty := make(chan []byte, copyBuffers), make(chan []byte, copyBuffers)
	for range copyBuffers {
		empty <- make([]byte, copyBuffer)
	}
	var readErr error
	go func() { // ends at the end of in, or when empty is closed
		defer close(full)
		for b := range empty {
			n, err := in.Read(b[:copyBuffer])
			if n > 0 {
				full <- b[:n]
			}
			if err != nil {
				if err != io.EOF {
					readErr = err
				}
				return
			}
		}
	}()
	var err error
	for b := range full {
		if err == nil {
			if _, err = (counted{out, &c.bytes}).Write(b); err != nil {
				close(empty)
			}
		}
		if err == nil {
			empty <- b
		}
	}
	return errors.Join(err, readErr)
}

// counted counts what is written.
type counted struct {
	io.Writer
	n *atomic.Int64
}

func (w counted) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// removeAll removes a name in a directory of the copy.
func (c *copier) removeAll(dir *os.File, name, shown string, depth int) {
	c.removed.Add(1)
	if c.dryRun {
		c.say(c.std.out, "remove %s", shown)
		return
	}
	if err := removeAt(dir, name, depth); err != nil {
		c.fail(shown, err)
	}
}

func removeAt(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if depth >= maxDepth {
		return unix.ELOOP
	}
	sub, err := openDirAt(dir, name)
	if err != nil {
		return err
	}
	names, err := sub.Readdirnames(-1)
	for _, n := range names {
		if err == nil {
			err = removeAt(sub, n, depth+1)
		}
	}
	sub.Close()
	if err != nil {
		return err
	}
	return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
}

// progress shows on a terminal how far it is, until the function that it gives is called.
func (c *copier) progress() func() {
	f, ok := terminal(c.std.err)
	if !ok {
		return func() {}
	}
	end, ended, began := make(chan struct{}), make(chan struct{}), time.Now()
	go func() {
		defer close(ended)
		for ticker := time.NewTicker(200 * time.Millisecond); ; {
			select {
			case <-end:
				ticker.Stop()
				fmt.Fprint(f, "\r\x1b[K")
				return
			case <-ticker.C:
				megabytes := float64(c.bytes.Load()) / (1 << 20)
				c.out.Lock()
				fmt.Fprintf(f, "\r%d files, %.1f MiB, %.1f MiB/s\x1b[K", c.files.Load(), megabytes, megabytes/time.Since(began).Seconds())
				c.out.Unlock()
			}
		}
	}()
	return func() { close(end); <-ended }
}

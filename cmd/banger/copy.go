package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/printable"
)

const (
	copyFiles   = 16      // files copied at once: each waits for round trips to the guest
	copyDirs    = 4       // directories copied at once: the kernel creates their names one by one
	maxDepth    = 256     // nested directories, each with two open descriptors
	maxEntries  = 1 << 20 // names in one directory: a guest may answer without end
	maxFailures = 20      // failures that are printed
)

// copier copies a tree whose source it does not trust. It opens each name relative to an open
// directory and follows no symbolic link on either side. A guest that changes its files meanwhile
// cannot lead it out of the destination.
type copier struct {
	std      stdio
	toGuest  bool // keep setuid and setgid bits; on the host they would name the user who copies
	sync     bool // skip files of the same type, size and time
	checksum bool // with sync: compare contents in place of times
	remove   bool // with sync: remove names that only the destination has
	dryRun   bool // with sync: print what would be done

	files, dirs chan struct{} // slots
	work        sync.WaitGroup
	printing    sync.Mutex // guards the lines of std and shown
	shown       progress

	seen, bytes, copied, removed, failed atomic.Int64
	fatal                                atomic.Pointer[error] // why nothing more can be copied
}

// dirPair is a directory of the source and its copy, open until all items in it are finished.
type dirPair struct {
	src, dst *os.File     // dst is nil in a dry run where there is no copy
	path     string       // for people
	parent   *dirPair     // nil at the top
	stat     *unix.Stat_t // of src, for the copy; nil leaves the copy's attributes alone
	depth    int          // directories above it
	users    atomic.Int64 // unfinished items, and the loop that lists them
}

// item is one name of the source and the name of its copy.
type item struct {
	dir      *dirPair
	from, to string // names in dir.src and dir.dst
	path     string // for people
	stat     unix.Stat_t
}

func newCopier(std stdio) *copier {
	files, dirs := make(chan struct{}, copyFiles), make(chan struct{}, copyDirs-1) // and the caller
	return &copier{std: std, files: files, dirs: dirs}
}

// fail reports an item that could not be copied. The others are still tried, unless a fatal error
// such as a full disk or a stopped VM would fail them too.
func (c *copier) fail(path string, err error) {
	switch errnoOf(err) {
	case syscall.EHOSTDOWN, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENOTCONN,
		syscall.ECONNABORTED, syscall.ENOSPC, syscall.EDQUOT:
		c.fatal.CompareAndSwap(nil, &err)
	}
	if n := c.failed.Add(1); n <= maxFailures {
		c.say(c.std.err, "banger: %s", explain("cannot copy "+path, "", err))
	}
}

func (c *copier) say(w io.Writer, format string, args ...any) {
	c.printing.Lock()
	defer c.printing.Unlock()
	c.shown.clear()
	fmt.Fprintln(w, printable.Message(fmt.Sprintf(format, args...))) // a guest chose the names
}

// run calls start with the first directory and waits until all items are copied. It shows the
// progress on a terminal and returns the failure.
func (c *copier) run(top *dirPair, dst place, start func(top *dirPair)) error {
	syscall.Umask(0) // modes are the source's
	c.toGuest = dst.inGuest()
	end := c.progress()
	top.users.Store(1)
	start(top)
	c.work.Wait()
	end()
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

// permissions returns the mode of a copy.
func (c *copier) permissions(st *unix.Stat_t) uint32 {
	if c.toGuest {
		return st.Mode & 0o7777
	}
	return st.Mode & 0o1777
}

// entry copies one name of d. Files are copied in the background. The caller is a user of d.
func (c *copier) entry(d *dirPair, from, to, path string) {
	if c.fatal.Load() != nil {
		return
	}
	it := &item{dir: d, from: from, to: to, path: path}
	var err error
	if it.stat, err = lstatAt(d.src, from); err != nil {
		c.fail(path, err)
		return
	}
	switch kindOf(&it.stat) {
	case unix.S_IFDIR:
		if err := c.copyDir(it); err != nil {
			c.fail(path, err)
		}
	case unix.S_IFREG, unix.S_IFLNK:
		d.users.Add(1)
		c.files <- struct{}{}
		c.work.Go(func() {
			defer func() { <-c.files }()
			defer c.leave(d)
			if err := c.leaf(it); err != nil {
				c.fail(path, err)
			}
		})
	default:
		c.say(c.std.err, "banger: %s is left out: "+
			"it is neither a file nor a directory nor a symbolic link", path)
	}
}

// copyDir copies a directory and its content, in the background if a slot is free.
func (c *copier) copyDir(it *item) (err error) {
	if it.dir.depth >= maxDepth {
		return unix.ELOOP
	}
	d := &dirPair{path: it.path, parent: it.dir, stat: &it.stat, depth: it.dir.depth + 1}
	if d.src, err = openDirAt(it.dir.src, it.from); err != nil {
		return err
	}
	if d.dst, err = c.makeDir(it); err != nil {
		d.src.Close()
		return err
	}
	it.dir.users.Add(1)
	d.users.Store(1)
	select {
	case c.dirs <- struct{}{}:
		c.work.Go(func() {
			c.content(d)
			<-c.dirs
		})
	default:
		c.content(d)
	}
	return nil
}

// makeDir makes the copy of a directory, or opens the directory that exists under its name.
func (c *copier) makeDir(it *item) (*os.File, error) {
	dst := it.dir.dst
	if dst == nil {
		return nil, nil
	}
	switch old, err := lstatAt(dst, it.to); {
	case err == nil && kindOf(&old) == unix.S_IFDIR:
	case c.dryRun:
		c.say(c.std.out, "copy %s", it.path)
	default:
		// The owner's bits let the copy be filled; leave sets the source's mode.
		err := unix.Mkdirat(int(dst.Fd()), it.to, c.permissions(&it.stat)|0o700)
		if err != nil && err != unix.EEXIST {
			return nil, err
		}
	}
	f, err := openDirAt(dst, it.to)
	if c.dryRun && err == unix.ENOENT {
		return nil, nil
	}
	return f, err
}

// content copies the content of a directory and ends the caller's use of it.
func (c *copier) content(d *dirPair) {
	defer c.leave(d)
	names, count := map[string]bool{}, 0
	for {
		batch, err := d.src.Readdirnames(256)
		for _, name := range batch {
			if c.remove {
				names[name] = true
			}
			c.entry(d, name, name, path.Join(d.path, name))
		}
		if count += len(batch); err == nil && count > maxEntries {
			err = unix.E2BIG
		}
		if err == io.EOF {
			break
		}
		if err != nil { // an incomplete list removes nothing
			c.fail(d.path, err)
			return
		}
	}
	if c.remove && d.dst != nil && c.fatal.Load() == nil {
		c.removeOthers(d, names)
	}
}

// removeOthers removes all names from a copy but those to keep.
func (c *copier) removeOthers(d *dirPair, keep map[string]bool) {
	names, err := d.dst.Readdirnames(-1)
	if err != nil {
		c.fail(d.path, err)
		return
	}
	for _, name := range names {
		if keep[name] {
			continue
		}
		shown := path.Join(d.path, name)
		c.removed.Add(1)
		if c.dryRun {
			c.say(c.std.out, "remove %s", shown)
		} else if err := removeAt(d.dst, name, d.depth); err != nil {
			c.fail(shown, err)
		}
	}
}

// leave ends a use of a directory. The last one sets mode and times: the items changed them.
func (c *copier) leave(d *dirPair) {
	if d.users.Add(-1) > 0 {
		return
	}
	if d.dst != nil {
		if d.stat != nil && !c.dryRun {
			err := unix.Fchmod(int(d.dst.Fd()), c.permissions(d.stat))
			if err == nil {
				err = setTimes(d.dst, ".", d.stat)
			}
			if err != nil {
				c.fail(d.path, err)
			}
		}
		d.dst.Close()
	}
	d.src.Close()
	if d.parent != nil {
		c.leave(d.parent)
	}
}

// progress shows files and bytes on a terminal until the returned function is called.
func (c *copier) progress() (end func()) {
	f, ok := terminal(c.std.err)
	if !ok {
		return func() {}
	}
	c.shown.screen = f
	stop, began := make(chan struct{}), time.Now()
	var showing sync.WaitGroup
	showing.Go(func() {
		ticker := time.NewTicker(progressPace)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				c.shown.clear()
				return
			case <-ticker.C:
				mib := float64(c.bytes.Load()) / (1 << 20)
				c.printing.Lock()
				c.shown.show("%d files, %.1f MiB, %.1f MiB/s",
					c.seen.Load(), mib, mib/time.Since(began).Seconds())
				c.printing.Unlock()
			}
		}
	})
	return func() {
		close(stop)
		showing.Wait()
	}
}

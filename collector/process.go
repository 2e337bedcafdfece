package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/vmm"
)

// ticksPerSecond is USER_HZ, the kernel's unit of time in /proc: 100 wherever Go runs on Linux.
const ticksPerSecond = 100

// leastSample is the shortest time over which CPU percent is computed. For less, ticks are too
// coarse.
const leastSample = 200 * time.Millisecond

// procStat is what is used of /proc/PID/stat (proc(5)).
type procStat struct {
	state     byte
	utime     uint64 // clock ticks
	stime     uint64 // clock ticks
	startTime uint64 // clock ticks after boot
	vsize     uint64 // bytes
	rss       uint64 // pages; as statm's, without another file to read
}

var errProcFormat = errors.New("not in the kernel's format")

// mostMemory bounds the figures of a process, bytes: more than any address space has.
const mostMemory = 1 << 62

// fields iterates over the words of a line without an allocation.
type fields struct{ rest []byte }

// next returns the n-th word after the last one it returned, n from 1; nothing at the end.
func (f *fields) next(n int) []byte {
	for {
		f.rest = bytes.TrimLeft(f.rest, " \n\t")
		end := bytes.IndexAny(f.rest, " \n\t")
		if end < 0 {
			end = len(f.rest)
		}
		word := f.rest[:end]
		f.rest = f.rest[end:]
		if n--; n == 0 || len(word) == 0 {
			return word
		}
	}
}

// parseProcStat parses /proc/PID/stat. The second field, the command's name, may hold anything,
// also brackets and line feeds.
func parseProcStat(b []byte) (procStat, error) {
	var p procStat
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return p, errProcFormat
	}
	f := fields{b[end+1:]}
	state := f.next(1)
	if len(state) != 1 {
		return p, errProcFormat
	}
	p.state = state[0]
	at := 3 // the field of proc(5) that was read last
	for _, x := range []struct {
		field int
		to    *uint64
	}{{14, &p.utime}, {15, &p.stime}, {22, &p.startTime}, {23, &p.vsize}, {24, &p.rss}} {
		n, err := strconv.ParseUint(string(f.next(x.field-at)), 10, 64)
		if err != nil {
			return procStat{}, errProcFormat
		}
		*x.to, at = n, x.field
	}
	if p.vsize > mostMemory || p.rss > mostMemory/uint64(pageSize) {
		return procStat{}, errProcFormat
	}
	return p, nil
}

// figures of one process at one moment.
type figures struct {
	ticks    uint64
	rss, vsz int64 // bytes
}

var errProcessGone = errors.New("process gone")

// procFiles are the open files of one process in /proc. To keep them costs a fifth of opening them
// anew. They stay that process's: once it has ended, reads are ESRCH, even if its pid is another's.
// Many goroutines may read them, also during close.
type procFiles struct {
	process vmm.Process
	stat    *os.File
	group   *cgroup // nil where the process has none of its own
	opened  time.Time
}

// keepGroup is the time after which a process's cgroup is looked up again.
const keepGroup = time.Minute

// procBuffers hold the content of one file each. No file here is longer.
var procBuffers = sync.Pool{New: func() any { return new([2048]byte) }}

// openProcess opens the files of that very process; errProcessGone when it ended, even if its pid
// is another's now.
func openProcess(proc string, p vmm.Process) (*procFiles, error) {
	dir := filepath.Join(proc, strconv.Itoa(p.PID))
	f := &procFiles{process: p}
	var err error
	if f.stat, err = os.Open(filepath.Join(dir, "stat")); err != nil {
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			return nil, fmt.Errorf("cannot read process %d: %w", p.PID, err)
		}
		return nil, fmt.Errorf("cannot read process %d: %w", p.PID, errProcessGone)
	}
	if _, err := f.read(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *procFiles) close() {
	f.stat.Close()
	f.group.close()
}

// readWhole reads a small file of procfs or of a cgroup into the buffer, with one pread(2).
// os.File.ReadAt would need a second one to see the end.
func readWhole(f *os.File, buf *[2048]byte) ([]byte, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := 0
	if controlErr := conn.Control(func(fd uintptr) {
		for n, err = unix.Pread(int(fd), buf[:], 0); err == unix.EINTR; {
			n, err = unix.Pread(int(fd), buf[:], 0)
		}
	}); controlErr != nil {
		return nil, controlErr
	}
	return buf[:max(n, 0)], err
}

// read returns the present figures; errProcessGone when the process has ended.
func (f *procFiles) read() (figures, error) {
	buf := procBuffers.Get().(*[2048]byte)
	defer procBuffers.Put(buf)
	b, err := readWhole(f.stat, buf)
	if err != nil {
		return figures{}, fmt.Errorf("cannot read process %d: %w", f.process.PID, errProcessGone)
	}
	st, err := parseProcStat(b)
	if err != nil {
		return figures{}, fmt.Errorf("cannot read figures of process %d: %w", f.process.PID, err)
	}
	if st.startTime != f.process.StartTime || st.state == 'Z' || st.state == 'X' {
		return figures{}, fmt.Errorf("cannot read process %d: %w", f.process.PID, errProcessGone)
	}
	rss := int64(st.rss) * pageSize
	return figures{ticks: st.utime + st.stime, rss: rss, vsz: int64(st.vsize)}, nil
}

var pageSize = int64(os.Getpagesize())

// mostKept returns the number of files that may be kept open: half of the daemon's limit. The other
// half is for machines and readers.
func mostKept() int64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return int64(min(l.Cur, 1<<30)) / 2
}

// count returns the number of open files.
func (f *procFiles) count() int64 { return 1 + f.group.count() }

// keptProcess holds the open files of an entry's process.
type keptProcess struct {
	mu    sync.Mutex // guards what follows
	files *procFiles // nil for none
	ended bool       // the VM was removed: nothing is kept any more
}

// of returns the files of that process. It opens them anew if they are another's or, with young, so
// old that the process may be in another cgroup. The caller calls done when it has read them.
func (k *keptProcess) of(
	c *Collector, p vmm.Process, young bool,
) (files *procFiles, done func(), err error) {
	now := c.now()
	usable := func(f *procFiles) bool {
		return f != nil && f.process == p && (!young || now.Sub(f.opened) < keepGroup)
	}
	k.mu.Lock()
	files = k.files
	k.mu.Unlock()
	if usable(files) {
		return files, func() {}, nil
	}
	if files, err = openProcess(c.proc, p); err != nil {
		return nil, nil, err
	}
	files.opened = now
	files.group = c.groups.ownGroup(filepath.Join(c.proc, strconv.Itoa(p.PID), "cgroup"))
	if c.kept.Add(files.count()) > c.mostKept {
		c.kept.Add(-files.count())
		return files, files.close, nil
	}
	k.mu.Lock()
	old := k.files
	if k.ended {
		c.kept.Add(-files.count())
		k.mu.Unlock()
		return files, files.close, nil
	}
	k.files = files
	k.mu.Unlock()
	c.letGo(old)
	return files, func() {}, nil
}

// drop closes the files. If the VM was removed it keeps none from then on.
func (k *keptProcess) drop(c *Collector, removed bool) {
	k.mu.Lock()
	old := k.files
	k.files = nil
	k.ended = k.ended || removed
	k.mu.Unlock()
	c.letGo(old)
}

func (c *Collector) letGo(f *procFiles) {
	if f != nil {
		f.close()
		c.kept.Add(-f.count())
	}
}

// sampler computes CPU percent from two readings of the same process.
type sampler struct {
	mu sync.Mutex
	// guarded by mu
	process  vmm.Process
	ticks    uint64
	at       time.Time
	computed *cpuShare // last; nil if there is none yet
}

// cpuShare is immutable.
type cpuShare struct {
	percent  float64 // of one core
	from, to time.Time
}

// sample records a reading and returns the share since an earlier one, nil if there was none.
func (p *sampler) sample(process vmm.Process, ticks uint64, now time.Time) *cpuShare {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process != process || p.at.IsZero() || ticks < p.ticks {
		p.process, p.ticks, p.at, p.computed = process, ticks, now, nil
		return nil
	}
	if d := now.Sub(p.at); d >= leastSample {
		used := float64(ticks-p.ticks) / ticksPerSecond
		p.computed = &cpuShare{used / d.Seconds() * 100, p.at, now}
		p.ticks, p.at = ticks, now
	}
	return p.computed
}

var _ = addSource(source{
	fill: func(_ context.Context, t *task, st *Stats) {
		if t.s.State.Alive() {
			processStats(t, st, true)
		}
	},
	metrics: []Metric{
		counter("banger_vm_cpu_seconds_total", "CPU time of the VMM's process, user and system.",
			1e6, func(s *Stats) *uint64 { return s.CPUUsec }),
		figure("banger_vm_resident_memory_bytes", "Resident memory of the VMM's process.", 1,
			func(s *Stats) *int64 { return s.RSSBytes }),
		figure("banger_vm_virtual_memory_bytes", "Virtual memory of the VMM's process.", 1,
			func(s *Stats) *int64 { return s.VSZBytes }),
		figure("banger_vm_cgroup_memory_bytes", "Memory charged to the VM's own cgroup.", 1,
			func(s *Stats) *int64 { return s.GroupMemoryBytes }),
		counter("banger_vm_cgroup_cpu_seconds_total", "CPU time of the VM's own cgroup.", 1e6,
			func(s *Stats) *uint64 { return s.GroupCPUUsec }),
	},
})

// processStats sets what the host knows of the VMM's process; nothing when it has ended. Without
// whole it leaves out what only `stats` shows.
func processStats(t *task, st *Stats, whole bool) {
	c, e, s := t.c, t.e, t.s
	if s.Process.PID == 0 {
		return
	}
	files, done, err := e.process.of(c, s.Process, whole)
	var f figures
	if err == nil {
		defer done()
		f, err = files.read()
	}
	if err != nil {
		if !errors.Is(err, errProcessGone) {
			c.log.Warn("cannot read process figures", "vm", s.Name, "err", err)
		}
		return
	}
	now := c.now()
	// One allocation for all.
	v := &struct {
		figures
		cpu, groupCPU uint64
		groupMemory   int64
		uptime        float64
	}{figures: f, cpu: f.ticks * (1e6 / ticksPerSecond)}
	if share := e.cpu.sample(s.Process, f.ticks, now); share != nil {
		st.CPUPercent, st.CPUFrom, st.CPUTo = &share.percent, share.from, share.to
	}
	st.CPUUsec, st.RSSBytes, st.VSZBytes = &v.cpu, &v.rss, &v.vsz
	if !s.Since.IsZero() {
		v.uptime = max(0, now.Sub(s.Since).Seconds())
		st.Uptime = &v.uptime
	}
	if !whole {
		return
	}
	var ok bool
	if v.groupCPU, ok = files.group.cpu(); ok {
		st.GroupCPUUsec = &v.groupCPU
	}
	if v.groupMemory, ok = files.group.memory(); ok {
		st.GroupMemoryBytes = &v.groupMemory
	}
}

package collector

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"banger/vmm"
)

// ticksPerSecond is USER_HZ, in which the kernel tells times to user space; 100 wherever Go runs on Linux.
const ticksPerSecond = 100

// leastSample is the shortest time that CPU percent is computed over: below it the clock ticks are too coarse.
const leastSample = 200 * time.Millisecond

// procStat is what is used of /proc/PID/stat (proc(5)).
type procStat struct {
	state     byte
	utime     uint64 // clock ticks
	stime     uint64 // clock ticks
	startTime uint64 // clock ticks after boot
}

var errProcFormat = errors.New("not in the kernel's format")

// parseProcStat parses /proc/PID/stat. The second field, the command's name, may hold anything, brackets and line feeds included.
func parseProcStat(b []byte) (procStat, error) {
	var p procStat
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return p, errProcFormat
	}
	f := bytes.Fields(b[end+1:]) // f[0] is field 3 of proc(5)
	if len(f) < 20 || len(f[0]) != 1 {
		return p, errProcFormat
	}
	p.state = f[0][0]
	for _, x := range []struct {
		field int
		to    *uint64
	}{{14, &p.utime}, {15, &p.stime}, {22, &p.startTime}} {
		n, err := strconv.ParseUint(string(f[x.field-3]), 10, 64)
		if err != nil {
			return procStat{}, errProcFormat
		}
		*x.to = n
	}
	return p, nil
}

// parseStatm gives the pages of address space and of resident memory from /proc/PID/statm.
func parseStatm(b []byte) (size, resident int64, err error) {
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0, 0, errProcFormat
	}
	const most = 1 << 50 // pages; more would overflow as bytes
	if size, err = strconv.ParseInt(string(f[0]), 10, 64); err != nil || size < 0 || size > most {
		return 0, 0, errProcFormat
	}
	if resident, err = strconv.ParseInt(string(f[1]), 10, 64); err != nil || resident < 0 || resident > most {
		return 0, 0, errProcFormat
	}
	return size, resident, nil
}

// figures of one process at one moment.
type figures struct {
	ticks    uint64
	rss, vsz int64
}

var errProcessGone = errors.New("process gone")

// readProcess reads the figures of that very process; errProcessGone when it ended, even if another has its pid now.
func readProcess(proc string, p vmm.Process) (figures, error) {
	dir := filepath.Join(proc, strconv.Itoa(p.PID))
	// statm before stat: a start time that fits afterwards shows that both were of this process.
	statm, err := os.ReadFile(filepath.Join(dir, "statm"))
	if err != nil {
		return figures{}, fmt.Errorf("cannot read process %d: %w", p.PID, errProcessGone)
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return figures{}, fmt.Errorf("cannot read process %d: %w", p.PID, errProcessGone)
	}
	st, err := parseProcStat(stat)
	if err != nil {
		return figures{}, fmt.Errorf("cannot read %s/stat: %w", dir, err)
	}
	if st.startTime != p.StartTime || st.state == 'Z' || st.state == 'X' {
		return figures{}, fmt.Errorf("cannot read process %d: %w", p.PID, errProcessGone)
	}
	size, resident, err := parseStatm(statm)
	if err != nil {
		return figures{}, fmt.Errorf("cannot read %s/statm: %w", dir, err)
	}
	page := int64(os.Getpagesize())
	return figures{ticks: st.utime + st.stime, rss: resident * page, vsz: size * page}, nil
}

// sampler computes CPU percent from two readings of the same process.
type sampler struct {
	mu sync.Mutex
	// guarded by mu
	process vmm.Process
	ticks   uint64
	at      time.Time
	percent *float64 // last computed
}

// sample takes a reading and gives the percent of one core since an earlier one, nil if there was none.
func (p *sampler) sample(process vmm.Process, ticks uint64, now time.Time) *float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process != process || p.at.IsZero() || ticks < p.ticks {
		p.process, p.ticks, p.at, p.percent = process, ticks, now, nil
		return nil
	}
	if d := now.Sub(p.at); d >= leastSample {
		p.percent = ptr(float64(ticks-p.ticks) / ticksPerSecond / d.Seconds() * 100)
		p.ticks, p.at = ticks, now
	}
	return p.percent
}

// processStats fills in what the host knows of the VMM's process; nothing when it has ended.
func (c *Collector) processStats(e *entry, s *vmm.Snapshot, st *Stats) {
	if s.Process.PID == 0 {
		return
	}
	f, err := readProcess(c.proc, s.Process)
	if err != nil {
		if !errors.Is(err, errProcessGone) {
			c.log.Warn("cannot read process figures", "vm", s.Name, "err", err)
		}
		return
	}
	now := c.now()
	st.CPUPercent = e.cpu.sample(s.Process, f.ticks, now)
	st.CPUUsec = ptr(f.ticks * (1e6 / ticksPerSecond))
	st.RSSBytes = ptr(f.rss)
	st.VSZBytes = ptr(f.vsz)
	if !s.Started.IsZero() {
		st.Uptime = ptr(max(0, now.Sub(s.Started).Seconds()))
	}
}

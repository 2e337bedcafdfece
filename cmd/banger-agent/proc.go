package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"banger/internal/host"
	"banger/vmm/guest"
)

const (
	maxRows   = 4096
	maxFile   = 4 << 20
	searchFor = time.Second // how long owners of sockets are looked for
	maxText   = 4 << 10
)

// socket is one row of /proc/net/{tcp,tcp6,udp,udp6}.
type socket struct {
	protocol string
	address  netip.Addr
	port     int
	inode    string
}

// States of a socket, the column `st` (include/net/tcp_states.h): a bound,
// unconnected UDP socket is in TCP_CLOSE.
const (
	stateListen = "0A"
	stateClose  = "07"
)

// parseSockets gives the rows in the state want, at most maxRows.
func parseSockets(b []byte, protocol, want string) []socket {
	var all []socket
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() && len(all) < maxRows {
		f := strings.Fields(s.Text())
		if len(f) < 10 || f[3] != want {
			continue
		}
		host, port, ok := strings.Cut(f[1], ":")
		if !ok {
			continue
		}
		a, ok := parseAddr(host)
		p, err := strconv.ParseUint(port, 16, 16)
		if !ok || err != nil {
			continue
		}
		all = append(all, socket{protocol, a, int(p), f[9]})
	}
	return all
}

// parseAddr reads an address as the kernel prints it: 32-bit words in the byte order of the (little-endian) host.
func parseAddr(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	return netip.AddrFromSlice(b)
}

// parseMeminfo gives MemTotal and MemAvailable of /proc/meminfo in bytes.
func parseMeminfo(b []byte) (total, available int64) {
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 50)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	return total, available
}

// firstFloat reads the first word of /proc/loadavg or /proc/uptime.
func firstFloat(b []byte) float64 {
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 0
	}
	v, err := strconv.ParseFloat(f[0], 64)
	if err != nil || !(v >= 0 && v <= 1e15) { // not a number is neither
		return 0
	}
	return v
}

// parseMounts returns one mount point for each block device.
func parseMounts(mountinfo []byte) []string {
	var points []string
	seen := map[string]bool{}
	for _, m := range host.Mounts(mountinfo) {
		if strings.HasPrefix(m.Source, "/dev/") && !seen[m.Source] {
			seen[m.Source] = true
			points = append(points, m.Mountpoint)
		}
	}
	return points
}

// listeners joins the sockets with the processes that hold them.
func (g *agent) listeners() []guest.Listener {
	var sockets []socket
	for _, f := range []struct{ name, protocol, state string }{
		{"tcp", "tcp", stateListen}, {"tcp6", "tcp", stateListen},
		{"udp", "udp", stateClose}, {"udp6", "udp", stateClose},
	} {
		sockets = append(sockets, parseSockets(readFile(filepath.Join(g.proc, "net", f.name)), f.protocol, f.state)...)
	}
	if len(sockets) > maxRows {
		sockets = sockets[:maxRows]
	}
	wanted := map[string]int{}
	for _, s := range sockets {
		wanted[s.inode] = 0
	}
	g.owners(wanted)
	all := make([]guest.Listener, 0, len(sockets))
	for _, s := range sockets {
		l := guest.Listener{Protocol: s.protocol, Address: s.address.String(), Port: s.port, PID: wanted[s.inode]}
		if l.PID != 0 {
			dir := filepath.Join(g.proc, strconv.Itoa(l.PID))
			l.Started = host.StartTime(readFile(dir + "/stat"))
			l.Process = strings.TrimSpace(string(readFile(dir + "/comm")))
			l.Command = command(readFile(dir + "/cmdline"))
		}
		all = append(all, l)
	}
	return all
}

func command(b []byte) string {
	if len(b) > maxText {
		b = b[:maxText]
	}
	return strings.TrimSpace(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
}

// owners fills in the lowest pid that holds each wanted inode, as far as it gets in searchFor.
func (g *agent) owners(wanted map[string]int) {
	missing := len(wanted)
	end := time.Now().Add(searchFor)
	for _, pid := range g.pids() {
		if missing == 0 || time.Now().After(end) {
			return
		}
		dir := filepath.Join(g.proc, strconv.Itoa(pid), "fd")
		d, err := os.Open(dir)
		if err != nil {
			continue
		}
		for time.Now().Before(end) {
			names, err := d.Readdirnames(256)
			for _, n := range names {
				link, _ := os.Readlink(filepath.Join(dir, n))
				inode, ok := strings.CutPrefix(strings.TrimSuffix(link, "]"), "socket:[")
				if had, want := wanted[inode]; ok && want && had == 0 {
					wanted[inode] = pid
					missing--
				}
			}
			if err != nil || missing == 0 {
				break
			}
		}
		d.Close()
	}
}

func (g *agent) pids() []int {
	d, err := os.Open(g.proc)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(1 << 16)
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// readFile gives at most maxFile bytes of a file, none if it cannot be read.
func readFile(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var b bytes.Buffer
	b.Grow(4096)
	for b.Len() < maxFile {
		p := make([]byte, 32<<10)
		n, err := f.Read(p)
		b.Write(p[:n])
		if err != nil {
			break
		}
	}
	return b.Bytes()
}

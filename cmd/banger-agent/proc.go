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
	"sync"
	"time"

	"golang.org/x/sys/unix"

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

// parseSockets returns the rows in the state want, at most maxRows.
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

// parseAddr parses an address as the kernel prints it: 32-bit words in little-endian order.
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

// parseMeminfo returns MemTotal and MemAvailable of /proc/meminfo in bytes.
func parseMeminfo(b []byte) (total, available int64) {
	value := func(name string) int64 {
		_, rest, _ := bytes.Cut(b, []byte(name))
		number, _, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" kB"))
		n, err := strconv.ParseInt(string(number), 10, 50)
		if err != nil {
			return 0
		}
		return n << 10
	}
	return value("MemTotal:"), value("MemAvailable:")
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
func listeners() []guest.Listener {
	var sockets []socket
	for _, f := range []struct{ name, protocol, state string }{
		{"tcp", "tcp", stateListen}, {"tcp6", "tcp", stateListen},
		{"udp", "udp", stateClose}, {"udp6", "udp", stateClose},
	} {
		text := readFile("/proc/net/" + f.name)
		sockets = append(sockets, parseSockets(text, f.protocol, f.state)...)
	}
	if len(sockets) > maxRows {
		sockets = sockets[:maxRows]
	}
	wanted := map[string]int{}
	for _, s := range sockets {
		wanted[s.inode] = 0
	}
	owners(wanted)
	all := make([]guest.Listener, 0, len(sockets))
	for _, s := range sockets {
		l := guest.Listener{Protocol: s.protocol, Address: s.address.String(), Port: s.port,
			PID: wanted[s.inode]}
		if l.PID != 0 {
			dir := "/proc/" + strconv.Itoa(l.PID)
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
func owners(wanted map[string]int) {
	missing := len(wanted)
	end := time.Now().Add(searchFor)
	for _, pid := range pids() {
		if missing == 0 || time.Now().After(end) {
			return
		}
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
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

// pids returns the processes of the guest.
func pids() []int {
	all, _ := host.PIDs() // none without a /proc
	return all
}

// scratch holds what is read of a file, so that an answer leaves little garbage.
var scratch = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// readFile returns at most maxFile bytes of a file, none if it cannot be read. It does without
// os.File, which would try each with epoll(7).
func readFile(path string) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	buf := scratch.Get().(*[32 << 10]byte)
	defer scratch.Put(buf)
	var b []byte
	for len(b) < maxFile {
		n, err := unix.Read(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		b = append(b, buf[:n]...)
	}
	return b
}

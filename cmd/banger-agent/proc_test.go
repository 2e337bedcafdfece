package main

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"testing"

	"banger/internal/host"
)

const tcpFixture = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0000000000000000 100 0 0 10 0
`

const tcp6Fixture = `   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1
`

func TestParseSockets(t *testing.T) {
	got := parseSockets([]byte(tcpFixture), "tcp", stateListen)
	if len(got) != 1 || got[0].address.String() != "127.0.0.1" || got[0].port != 8080 || got[0].inode != "12345" {
		t.Fatalf("%v", got)
	}
	got = parseSockets([]byte(tcp6Fixture), "tcp", stateListen)
	if len(got) != 1 || got[0].address.String() != "::1" || got[0].port != 80 {
		t.Fatalf("%v", got)
	}
}

func TestParseFigures(t *testing.T) {
	total, available := parseMeminfo([]byte("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   50 kB\n"))
	if total != 102400 || available != 51200 {
		t.Fatal(total, available)
	}
	if total, available := parseMeminfo([]byte("MemTotal: -1x\nMemAvailable:")); total != 0 || available != 0 {
		t.Fatal(total, available)
	}
	const mounts = "22 1 0:20 / /proc rw - proc proc rw\n30 1 254:0 / /my\\040disk rw - ext4 /dev/vda rw\n31 1 254:0 / /b rw - ext4 /dev/vda rw\n"
	if m := parseMounts([]byte(mounts)); len(m) != 1 || m[0] != "/my disk" {
		t.Fatal(m)
	}
	if n := host.StartTime([]byte("7 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n")); n != 4711 {
		t.Fatal(n)
	}
	if c := command([]byte("httpd\x00-p\x0080\x00")); c != "httpd -p 80" {
		t.Fatal(c)
	}
}

func FuzzProc(f *testing.F) {
	f.Add([]byte(tcpFixture))
	f.Add([]byte(tcp6Fixture))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := len(parseSockets(b, "tcp", stateListen)); n > maxRows {
			t.Fatal(n)
		}
		for _, s := range parseSockets(b, "udp", stateClose) {
			if !s.address.IsValid() || s.port < 0 || s.port > 65535 {
				t.Fatalf("%+v", s)
			}
		}
		if total, available := parseMeminfo(b); total%1024 != 0 || available%1024 != 0 {
			t.Fatal(total, available)
		}
		host.StartTime(b) // does not panic
		if n := len(parseMounts(b)); n > bytes.Count(b, []byte("/dev/")) {
			t.Fatal(n)
		}
		if c := command(b); len(c) > maxText || strings.Contains(c, "\x00") {
			t.Fatalf("%q", c)
		}
	})
}

// TestFiguresOfTheKernel compares the figures of system calls with those of /proc.
func TestFiguresOfTheKernel(t *testing.T) {
	first := func(name string) float64 {
		v, err := strconv.ParseFloat(strings.Fields(string(readFile(name)))[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before, now, after := first("/proc/uptime"), uptime(), first("/proc/uptime")
	if now < before || now > after {
		t.Errorf("uptime %v is not from %v to %v", now, before, after)
	}
	before, now, after = first("/proc/loadavg"), load(), first("/proc/loadavg")
	if now != before && now != after {
		t.Errorf("load %v is neither %v nor %v", now, before, after)
	}
}

// BenchmarkStats is what a poll of stats costs a guest.
func BenchmarkStats(b *testing.B) {
	g := new(agent)
	b.ReportAllocs()
	for range b.N {
		if _, err := g.Stats(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

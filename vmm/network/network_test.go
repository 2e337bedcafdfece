package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

const inside = "BANGER_NETWORK_TEST_INSIDE"

// TestMain runs the tests again in a network namespace of their own, which ends with that process.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = c.Run()
	}
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

func privileged(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root: run the tests as root")
	}
	t.Cleanup(func() {
		if err := removeAll(); err != nil {
			t.Error(err)
		}
	})
}

// removeAll removes all links and tables of ours.
func removeAll() error {
	all, err := Leftovers()
	for _, l := range all {
		err = errors.Join(err, l.Remove())
	}
	return err
}

var prefix = netip.MustParsePrefix("10.66.0.0/16")

func options(nat bool) Options {
	return Options{Bridge: "bt0", Prefix: prefix, NAT: nat, Instance: "inst"}
}

func TestBridgeAndTap(t *testing.T) {
	privileged(t)
	n, err := New(options(false))
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.Tap(context.Background(), 37, "uuid-1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName("bt0-11")
	if err != nil {
		t.Fatal(err)
	}
	b, err := netlink.LinkByName("bt0")
	if err != nil {
		t.Fatal(err)
	}
	if a := l.Attrs(); a.Alias != "banger:inst:uuid-1" || a.MasterIndex != b.Attrs().Index || a.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("tap: %+v", a)
	}
	if _, err := n.Tap(context.Background(), 37, "uuid-1"); err == nil {
		t.Error("the same tap twice")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("bt0-11"); err == nil {
		t.Error("the tap outlived its file")
	}
	addrs, err := netlink.AddrList(b, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "10.66.0.1/16" {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	if _, err := New(options(false)); err != nil {
		t.Errorf("the next daemon: %v", err)
	}
	other := options(false)
	other.Instance = "another"
	if _, err := New(other); !errors.Is(err, vmm.ErrExists) {
		t.Errorf("another's bridge: %v", err)
	}
	if err := removeAll(); err != nil {
		t.Fatal(err)
	}
	if f, err = n.Tap(context.Background(), 1, "uuid-2"); err != nil {
		t.Fatalf("after the bridge was removed: %v", err)
	}
	_ = f.Close()
}

func TestNAT(t *testing.T) {
	privileged(t)
	count := func() (got int) {
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		tables, err := c.ListTables()
		if err != nil {
			t.Skipf("no nftables here (modprobe nf_tables): %v", err)
		}
		for _, tb := range tables {
			if tb.Name == "banger_bt0" {
				got++
			}
		}
		return got
	}
	before := count()
	for _, step := range []struct {
		nat  bool
		want int
	}{{true, 2}, {true, 2}, {false, 2}, {true, 2}} {
		if _, err := New(options(step.nat)); err != nil {
			t.Fatal(err)
		}
		if got := count(); before != 0 || got != step.want {
			t.Fatalf("nat %v: %d tables, want %d", step.nat, got, step.want)
		}
	}
	if b, err := os.ReadFile(filepath.Clean("/proc/sys/net/ipv4/ip_forward")); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Errorf("ip_forward %q, %v", b, err)
	}
	if err := removeAll(); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 0 {
		t.Errorf("%d tables after the cleanup", got)
	}
}

func TestClash(t *testing.T) {
	privileged(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other0"
	other := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(other); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.LinkDel(other) }()
	addr, _ := netlink.ParseAddr("10.66.5.1/24")
	if err := errors.Join(netlink.AddrAdd(other, addr), netlink.LinkSetUp(other)); err != nil {
		t.Fatal(err)
	}
	if _, err := New(options(false)); !errors.Is(err, vmm.ErrExists) || !strings.Contains(err.Error(), "other0") {
		t.Fatalf("got %v", err)
	}
	if _, err := netlink.LinkByName("bt0"); err == nil {
		t.Error("the refused bridge was made")
	}
}

func TestUnprivileged(t *testing.T) {
	n := Unprivileged()
	if err := n.Check(vmm.NetBridge); !errors.Is(err, vmm.ErrNotPermitted) {
		t.Error(err)
	}
	if err := errors.Join(n.Check(vmm.NetUser), n.Check(vmm.NetNone)); err != nil {
		t.Error(err)
	}
	if _, err := n.Tap(context.Background(), 1, "u"); !errors.Is(err, vmm.ErrNotPermitted) {
		t.Error(err)
	}
}

// lines counts the lines that are logged.
type lines struct{ atomic.Int32 }

func (l *lines) Write(b []byte) (int, error) {
	l.Add(1)
	return len(b), nil
}

func flushRuleset(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	if err == nil {
		c.FlushRuleset()
		err = c.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// isWhole reports whether every rule of ours is there.
func isWhole(t *testing.T, n *Network) bool {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range n.chains() {
		rules, err := c.GetRules(n.table(ch.family), &nftables.Chain{Name: ch.name})
		if err != nil {
			t.Fatal(err)
		}
		if len(rules) != len(ch.rules) {
			return false
		}
	}
	return true
}

func waitWhole(t *testing.T, n *Network, most time.Duration) {
	t.Helper()
	for end := time.Now().Add(most); !isWhole(t, n); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the tables are not back after %v", most)
		}
	}
}

// TestFlushed has somebody take all tables away: they are put back, and one who does it for ever is not fought as fast as one can.
func TestFlushed(t *testing.T) {
	privileged(t)
	var log lines
	o := options(true)
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	n, err := New(o)
	if err == nil {
		err = n.Settle()
	}
	if err != nil {
		t.Fatal(err)
	}
	guest := connection(3, "")
	if err := n.Connect(guest); err != nil {
		t.Fatal(err)
	}
	flushRuleset(t)
	waitWhole(t, n, 10*time.Second)
	if got, want := inForce(t, n), wanted(t, n, guest); !slices.Equal(got, want) {
		t.Errorf("in force is %q, want %q", got, want)
	}
	if got := log.Load(); got != 1 {
		t.Errorf("%d lines were logged", got)
	}
	began := time.Now()
	for fights := 0; time.Since(began) < leastPause+leastPause/2 || fights < 20; fights++ {
		flushRuleset(t)
	}
	if most := 2 + int32(time.Since(began)/leastPause); log.Load() > most {
		t.Errorf("%d times in %v", log.Load(), time.Since(began))
	}
	waitWhole(t, n, 2*mostPause)
	if err := n.Release(); err != nil {
		t.Fatal(err)
	}
	if isWhole(t, n) {
		t.Error("the tables outlive Release")
	}
}

// TestPutBack takes parts of the tables away. What we change ourselves, and what is others', is nothing to look at.
func TestPutBack(t *testing.T) {
	privileged(t)
	n, err := New(options(true))
	if err != nil {
		t.Fatal(err)
	}
	told, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	spoof := &nftables.Chain{Table: n.table(bridgeFamily), Name: "spoof"}
	theirs := &nftables.Table{Family: inetFamily, Name: tablePrefix + "other0"}
	for _, step := range []struct {
		what              string
		change            func() error
		concerns, putBack bool
	}{
		{"a guest comes", func() error { return n.Connect(connection(3, "0.0.0.0:9000:80")) }, false, false},
		{"another's table", func() error { c.AddTable(theirs); return c.Flush() }, false, false},
		{"another's table goes", func() error { c.DelTable(theirs); return c.Flush() }, false, false},
		{"a chain is flushed", func() error { c.FlushChain(spoof); return c.Flush() }, true, true},
		{"a table goes", func() error { c.DelTable(n.table(inetFamily)); return c.Flush() }, true, true},
		{"a table is flushed", func() error { c.FlushTable(n.table(bridgeFamily)); return c.Flush() }, true, true},
		{"a rule is added", func() error {
			c.InsertRule(&nftables.Rule{Table: spoof.Table, Chain: spoof, Exprs: rule(accept)})
			return c.Flush()
		}, true, false},
		{"all goes", func() error { c.FlushRuleset(); return c.Flush() }, true, true},
	} {
		if err := step.change(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		concerns := false
		for last := false; !last; {
			all, _, err := told.Receive()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				concerns = concerns || n.concerns(m.Header.Type, m.Data)
				last = m.Header.Type&0xff == unix.NFT_MSG_NEWGEN
			}
		}
		put, err := n.putBack()
		if concerns != step.concerns || put != step.putBack || err != nil {
			t.Errorf("%s: concerns %v, put back %v: %v", step.what, concerns, put, err)
		}
		if !put {
			continue
		}
		for last := false; !last; { // what putBack did
			all, _, err := told.Receive()
			if err != nil {
				t.Fatal(err)
			}
			last = all[len(all)-1].Header.Type&0xff == unix.NFT_MSG_NEWGEN
		}
		if !isWhole(t, n) {
			t.Errorf("%s: it is not whole", step.what)
		}
	}
	if err := removeAll(); err != nil {
		t.Fatal(err)
	}
	if put, err := n.putBack(); put || err != nil {
		t.Errorf("after a cleanup: put back %v, %v", put, err)
	}
	for _, junk := range []string{"", "abc", "abcd", "\x0a\x00\x00\x00\xff\xff\x01\x00", "\x0a\x00\x00\x00\x03\x00\x01\x00banger_bt0"} {
		if n.concerns(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, []byte(junk)) {
			t.Errorf("%q concerns us", junk)
		}
	}
}

// TestLeftovers finds whose links and tables are, also where the bridge that a table is named after is gone.
func TestLeftovers(t *testing.T) {
	privileged(t)
	first, second := options(false), options(false)
	first.Instance = "6e7e9e0c-1111-4a6b-8a52-27a4b1a3c0de"
	second.Bridge, second.Prefix, second.Instance = "bt9", netip.MustParsePrefix("10.77.0.0/16"), "another"
	n, err := New(first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(second); err != nil {
		t.Fatal(err)
	}
	f, err := n.Tap(context.Background(), 7, "uuid")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	of := func(instance string) (found []string) {
		all, err := Leftovers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if l.Instance == instance {
				found = append(found, l.Text)
			}
		}
		slices.Sort(found)
		return found
	}
	tables := []string{"nftables table banger_bt0, family bridge", "nftables table banger_bt0, family inet"}
	if got, want := of(first.Instance), append([]string{"link bt0", "link bt0-7"}, tables...); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := of(second.Instance); len(got) != 3 {
		t.Errorf("of the other: %q", got)
	}
	bridge, err := netlink.LinkByName("bt0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), netlink.LinkDel(bridge)); err != nil {
		t.Fatal(err)
	}
	if got := of(first.Instance); !slices.Equal(got, tables) {
		t.Errorf("without the bridge: %q, want %q", got, tables)
	}
}

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
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
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
		if err := Cleanup(slog.Default()); err != nil {
			t.Error(err)
		}
	})
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
	if err := Cleanup(slog.Default()); err != nil {
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
	if err := Cleanup(slog.Default()); err != nil {
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

package vmm_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"banger/vmm"
	"banger/vmm/fake"
)

// leases gives each VM an address of its own.
type leases struct{ *memory }

func (leases) Lease(_ context.Context, serial uint64, _ netip.Prefix, _ netip.Addr) (netip.Addr, error) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 172<<24|30<<16|uint32(serial))
	return netip.AddrFrom4(b), nil
}

// bridged is a network with addresses of both families.
type bridged struct{ network }

func (bridged) Check(vmm.NetMode) error { return nil }

func (bridged) Address6(a netip.Addr) netip.Prefix {
	b := a.As4()
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 14: b[2], 15: b[3]}), 64)
}

func (bridged) Tap(context.Context, uint64, string) (*os.File, error) { return os.Open(os.DevNull) }

// wired is the fake driver with a place in the network.
type wired struct{ vmm.Driver }

func (wired) Capabilities() vmm.Capabilities { return vmm.Capabilities{Name: "fake"} }

func openBridged(t *testing.T, dir string, store vmm.Store) *vmm.Manager {
	t.Helper()
	return openWith(t, dir, store, images{}, func(o *vmm.Options) {
		o.Drivers, o.Network, o.Defaults.Net = []vmm.Driver{wired{fake.New()}}, bridged{}, vmm.NetBridge
	})
}

// TestNameOf finds who has an address now, whatever became of VMs and the daemon meanwhile.
func TestNameOf(t *testing.T) {
	dir, store := t.TempDir(), leases{newStore()}
	m := openBridged(t, dir, store)
	check := func(what string, want map[string]string) {
		t.Helper()
		for _, a := range []string{"172.30.0.1", "fd00::1", "172.30.0.2", "fd00::2", "172.30.0.3"} {
			if got := m.NameOf(netip.MustParseAddr(a)); got != want[a] {
				t.Errorf("%s: %s is %q, want %q", what, a, got, want[a])
			}
		}
	}
	web, db := create(t, m, "web", ""), create(t, m, "db", "")
	check("made", nil)
	do(t, web, vmm.Start, nil)
	do(t, db, vmm.Start, nil)
	both := map[string]string{"172.30.0.1": "web", "fd00::1": "web", "172.30.0.2": "db", "fd00::2": "db"}
	check("running", both)
	do(t, db, vmm.Pause, nil)
	check("paused", both)
	m.Close(context.Background())
	m = openBridged(t, dir, store)
	check("adopted", both)
	do(t, m.VM("web"), vmm.Stop, nil)
	check("stopped", map[string]string{"172.30.0.2": "db", "fd00::2": "db"})
	if err := m.Rename(context.Background(), "web", "www", nil); err != nil {
		t.Fatal(err)
	}
	do(t, m.VM("www"), vmm.Start, nil)
	check("renamed", map[string]string{"172.30.0.1": "www", "fd00::1": "www", "172.30.0.2": "db", "fd00::2": "db"})
	do(t, m.VM("db"), vmm.Kill, nil)
	if err := m.Remove(context.Background(), "db", nil); err != nil {
		t.Fatal(err)
	}
	check("removed", map[string]string{"172.30.0.1": "www", "fd00::1": "www"})
}

// TestSpecialNames adopts a VM of an earlier version that has a special name. It runs on, and no
// look-up leads to it.
func TestSpecialNames(t *testing.T) {
	dir, store := t.TempDir(), leases{newStore()}
	m := openBridged(t, dir, store)
	do(t, create(t, m, "web", ""), vmm.Start, nil)
	m.Close(context.Background())
	for serial, r := range store.records {
		r.Name = "wpad"
		store.records[serial] = r
	}
	m = openBridged(t, dir, store)
	m.SetNamed(true)
	v := m.VM("wpad")
	await(t, v, vmm.Running)
	a := v.Snapshot().GuestAddress()
	if !a.IsValid() || m.NameOf(a) != "" || len(m.Addresses("wpad")) > 0 ||
		len(m.Hosts(true)) > 0 || v.Snapshot().DNS() != "" {
		t.Errorf("at %v it is %q, %v, %q, %q", a, m.NameOf(a), m.Addresses("wpad"), m.Hosts(true),
			v.Snapshot().DNS())
	}
	if err := m.Rename(context.Background(), "wpad", "gateway", nil); err == nil {
		t.Error("it has another special name")
	}
	do(t, v, vmm.Stop, nil)
	if err := m.Rename(context.Background(), "wpad", "web", nil); err != nil {
		t.Error(err)
	}
	do(t, v, vmm.Start, nil)
	if m.NameOf(a) != "web" || len(m.Addresses("web")) == 0 || v.Snapshot().DNS() != "web.vm" {
		t.Error("it has no name after its mv")
	}
}

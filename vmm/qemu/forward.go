package qemu

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"banger/vmm"
)

// monitor gives a line to the human monitor and returns what it says: QMP has no hostfwd_add and hostfwd_remove (qemu(1)).
func (m *Machine) monitor(ctx context.Context, line string) (string, error) {
	var said string
	err := m.call(ctx, "human-monitor-command", map[string]string{"command-line": line}, &said)
	return strings.TrimSpace(said), err
}

// Forward implements vmm.Forwarder with QEMU's hostfwd. It asks QEMU what there is, so that it does not matter who made that.
func (m *Machine) Forward(ctx context.Context, all []vmm.Publication) error {
	said, err := m.monitor(ctx, "info usernet")
	if err != nil {
		return err
	}
	has := parseForwards(said)
	var removed, added []vmm.Publication
	undo := func() {
		for _, p := range added {
			_ = m.forward(ctx, "remove", p) // if QEMU ended, so did they
		}
		for _, p := range removed {
			_ = m.forward(ctx, "add", p)
		}
	}
	for _, p := range has {
		if slices.Contains(all, p) {
			continue
		}
		if err := m.forward(ctx, "remove", p); err != nil {
			undo()
			return err
		}
		removed = append(removed, p)
	}
	for _, p := range all {
		if slices.Contains(has, p) {
			continue
		}
		if err := m.forward(ctx, "add", p); err != nil {
			undo()
			return err
		}
		added = append(added, p)
	}
	return nil
}

func (m *Machine) forward(ctx context.Context, word string, p vmm.Publication) error {
	line := fmt.Sprintf("hostfwd_%s net0 %s:%s", word, p.Protocol, p.Host)
	if word == "add" {
		line += fmt.Sprintf("-%s:%d", vmm.UserAddress.Addr(), p.Guest)
	}
	said, err := m.monitor(ctx, line)
	switch {
	case err != nil:
		return err
	case word == "add" && said != "":
		// The daemon has just seen that the port was free; QEMU says no reason.
		return fmt.Errorf("cannot publish %s: QEMU says %q: %w", p, said, vmm.ErrAddressInUse)
	case word == "remove" && !strings.HasSuffix(said, " removed"):
		return fmt.Errorf("cannot unpublish %s: QEMU says %q", p, said)
	}
	return nil
}

// parseForwards reads the rules from `info usernet`: protocol and state, descriptor, source address and port, destination address and port.
func parseForwards(text string) []vmm.Publication {
	var all []vmm.Publication
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasSuffix(f[0], "[HOST_FORWARD]") {
			continue
		}
		host, err := netip.ParseAddr(f[2])
		if f[2] == "*" {
			host, err = netip.IPv4Unspecified(), nil
		}
		outer, err1 := strconv.ParseUint(f[3], 10, 16)
		inner, err2 := strconv.ParseUint(f[5], 10, 16)
		if err == nil && err1 == nil && err2 == nil {
			protocol := strings.ToLower(strings.TrimSuffix(f[0], "[HOST_FORWARD]"))
			all = append(all, vmm.Publication{Protocol: protocol, Host: netip.AddrPortFrom(host, uint16(outer)), Guest: uint16(inner)})
		}
	}
	return all
}

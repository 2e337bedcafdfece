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

// humanMonitor returns the human monitor's answer to a line. QMP has no hostfwd_add and
// hostfwd_remove (qemu(1)).
func (m *Machine) humanMonitor(ctx context.Context, line string) (string, error) {
	var answer string
	err := m.call(ctx, "human-monitor-command", map[string]string{"command-line": line}, &answer)
	return strings.TrimSpace(answer), err
}

// Forward implements vmm.Machine with QEMU's hostfwd. It asks QEMU for the present rules, so that
// it does not matter who made them.
func (m *Machine) Forward(ctx context.Context, all []vmm.Publication) error {
	text, err := m.humanMonitor(ctx, "info usernet")
	if err != nil {
		return err
	}
	present := parseForwards(text)
	var removed, added []vmm.Publication
	defer func() {
		if err == nil {
			return
		}
		for _, p := range added {
			_ = m.forward(ctx, "remove", p) // if QEMU has ended, so have its ports
		}
		for _, p := range removed {
			_ = m.forward(ctx, "add", p)
		}
	}()
	for _, p := range present {
		if slices.Contains(all, p) {
			continue
		}
		if err = m.forward(ctx, "remove", p); err != nil {
			return err
		}
		removed = append(removed, p)
	}
	for _, p := range all {
		if slices.Contains(present, p) {
			continue
		}
		if err = m.forward(ctx, "add", p); err != nil {
			return err
		}
		added = append(added, p)
	}
	return nil
}

// forward adds or removes one rule, by the word "add" or "remove".
func (m *Machine) forward(ctx context.Context, word string, p vmm.Publication) error {
	line := fmt.Sprintf("hostfwd_%s net0 %s:%s", word, p.Protocol, p.Host)
	if word == "add" {
		line += fmt.Sprintf("-%s:%d", vmm.UserAddress.Addr(), p.Guest)
	}
	answer, err := m.humanMonitor(ctx, line)
	switch {
	case err != nil:
		return err
	case word == "add" && answer != "":
		// The daemon has just found the port free, and QEMU names no reason.
		return fmt.Errorf("cannot publish %s: QEMU says %q: %w", p, answer, vmm.ErrAddressInUse)
	case word == "remove" && !strings.HasSuffix(answer, " removed"):
		return fmt.Errorf("cannot unpublish %s: QEMU says %q", p, answer)
	}
	return nil
}

// parseForwards reads the rules from `info usernet`. A row has protocol and state, descriptor,
// source address and port, destination address and port.
func parseForwards(text string) []vmm.Publication {
	const mark = "[HOST_FORWARD]"
	var all []vmm.Publication
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasSuffix(f[0], mark) {
			continue
		}
		address, err := netip.ParseAddr(f[2])
		if f[2] == "*" {
			address, err = netip.IPv4Unspecified(), nil
		}
		outer, err1 := strconv.ParseUint(f[3], 10, 16)
		inner, err2 := strconv.ParseUint(f[5], 10, 16)
		if err == nil && err1 == nil && err2 == nil {
			all = append(all, vmm.Publication{
				Protocol: strings.ToLower(strings.TrimSuffix(f[0], mark)),
				Host:     netip.AddrPortFrom(address, uint16(outer)), Guest: uint16(inner),
			})
		}
	}
	return all
}

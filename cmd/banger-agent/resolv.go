package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"banger/vmm/guest"
)

// resolvMark is the first line of a resolv.conf that the agent wrote.
const resolvMark = "# written by banger-agent\n"

// resolvers are the guest's, in its resolv.conf or in its systemd-resolved.
type resolvers struct {
	root string // of the guest's files, "/" if empty
	told bool   // since the agent's start
}

// resolvConf is the file's text. Who answers on the gateway also knows the guests' names.
func resolvConf(servers []netip.Addr, gateway netip.Addr) []byte {
	var b strings.Builder
	b.WriteString(resolvMark)
	if len(servers) > 0 && servers[0] == gateway {
		b.WriteString("search " + guest.Zone + "\n")
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return []byte(b.String())
}

// set writes the resolvers. At the first call after the guest's start it replaces any file, which may
// be from the host of the image's build. Later it replaces only its own, so that a user's file stays.
// A link stays unless it leads nowhere. If it is systemd-resolved's, that gets the servers.
func (r *resolvers) set(servers []netip.Addr, gateway netip.Addr) error {
	path := filepath.Join("/", r.root, "etc/resolv.conf")
	text := resolvConf(servers, gateway)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case info.Mode()&os.ModeSymlink != 0:
		if target, _ := os.Readlink(path); r.hasResolved() && strings.Contains(target, "systemd") {
			return r.setResolved(servers, gateway)
		}
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	case !info.Mode().IsRegular():
		return nil
	default:
		has, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Equal(has, text) || r.told && !bytes.HasPrefix(has, []byte(resolvMark)) {
			r.told = true
			return nil
		}
	}
	r.told = true
	return putFile(path, text)
}

// setResolved gives systemd-resolved the servers for what no link has servers for
// (resolved.conf(5)). One that runs reads them at a restart, which keeps what links have.
func (r *resolvers) setResolved(servers []netip.Addr, gateway netip.Addr) error {
	var b strings.Builder
	b.WriteString(resolvMark + "[Resolve]\n")
	for _, s := range servers {
		fmt.Fprintf(&b, "DNS=%s\n", s)
	}
	if len(servers) > 0 && servers[0] == gateway {
		b.WriteString("Domains=" + guest.Zone + "\n")
	}
	path := filepath.Join("/", r.root, "run/systemd/resolved.conf.d/banger.conf")
	if has, err := os.ReadFile(path); err == nil && string(has) == b.String() {
		return nil
	}
	if err := putFile(path, []byte(b.String())); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join("/", r.root, "run/systemd/resolve")); err != nil {
		return nil // it has yet to start
	}
	cmd := exec.Command("systemctl", "--no-block", "try-restart", "systemd-resolved.service")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot restart systemd-resolved: %w: %.128q", err, out)
	}
	return nil
}

// hasResolved reports whether the guest has systemd-resolved, which may not run yet.
func (r *resolvers) hasResolved() bool {
	for _, dir := range []string{"usr/lib/systemd", "lib/systemd"} {
		if _, err := os.Stat(filepath.Join("/", r.root, dir, "systemd-resolved")); err == nil {
			return true
		}
	}
	return false
}

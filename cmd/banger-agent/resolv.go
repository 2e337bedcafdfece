package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"banger/vmm/guest"
)

// resolvMark is the first line of a resolv.conf that the agent wrote.
const resolvMark = "# written by banger-agent\n"

// resolvers are the guest's, in its resolv.conf.
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
// A link stays, such as systemd-resolved's, unless it leads nowhere and nothing will change that.
func (r *resolvers) set(servers []netip.Addr, gateway netip.Addr) error {
	path := filepath.Join("/", r.root, "etc/resolv.conf")
	text := resolvConf(servers, gateway)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case info.Mode()&os.ModeSymlink != 0:
		if _, err := os.Stat(path); err == nil || r.hasResolved() {
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

// hasResolved reports whether the guest has systemd-resolved, which may not run yet.
func (r *resolvers) hasResolved() bool {
	for _, dir := range []string{"usr/lib/systemd", "lib/systemd"} {
		if _, err := os.Stat(filepath.Join("/", r.root, dir, "systemd-resolved")); err == nil {
			return true
		}
	}
	return false
}

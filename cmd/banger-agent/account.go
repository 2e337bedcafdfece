package main

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"banger/vmm/guest"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// account is the user that a command runs as.
type account struct {
	uid, gid   uint32
	groups     []uint32
	name, home string
}

// findAccount parses USER[:GROUP], names or numbers; empty is root. With a group the account has no
// other. Numbers need no entry in /etc/passwd or /etc/group.
func findAccount(text string) (*account, error) {
	id, group, withGroup := strings.Cut(cmp.Or(text, "0"), ":")
	bad := fmt.Errorf("no user %.64q is in the guest: %w", id, guest.ErrInvalid)
	uid, err := strconv.ParseUint(id, 10, 32)
	var u *user.User
	if err == nil {
		u, _ = user.LookupId(id) // one without an entry has no name and no home
	} else if u, err = user.Lookup(id); err != nil {
		return nil, bad
	} else if uid, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
		return nil, bad
	}
	a := &account{uid: uint32(uid), gid: uint32(uid), name: id, home: "/"}
	if a.uid == 0 {
		a.name, a.home = "root", "/root"
	}
	if u != nil {
		a.name, a.home = u.Username, u.HomeDir
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, bad
		}
		a.gid = uint32(gid)
		if !withGroup {
			ids, _ := u.GroupIds() // none in a guest without /etc/group
			for _, s := range ids {
				if n, err := strconv.ParseUint(s, 10, 32); err == nil {
					a.groups = append(a.groups, uint32(n))
				}
			}
		}
	}
	if withGroup && group != "" {
		gid, err := strconv.ParseUint(group, 10, 32)
		if err != nil {
			g, err := user.LookupGroup(group)
			if err == nil {
				gid, err = strconv.ParseUint(g.Gid, 10, 32)
			}
			if err != nil {
				return nil, fmt.Errorf("no group %.64q is in the guest: %w", group,
					guest.ErrInvalid)
			}
		}
		a.gid = uint32(gid)
	}
	return a, nil
}

// environment returns the variables that login(1) would set.
func (a *account) environment(terminal bool) []string {
	env := []string{"PATH=" + defaultPath, "HOME=" + a.home, "USER=" + a.name,
		"LOGNAME=" + a.name, "SHELL=/bin/sh"}
	if lang := os.Getenv("LANG"); lang != "" {
		env = append(env, "LANG="+lang)
	}
	if terminal {
		env = append(env, "TERM=xterm")
	}
	return env
}

package main

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

const maxLinks = 40 // symbolic links in one path, as the kernel follows them (path_resolution(7))

// place is one side of a copy.
type place struct {
	typed string // by the user
	root  string // of a guest's files, below the mount; empty for the host
	path  string // with the guest's symbolic links resolved
}

// place parses VM:PATH, or a path of the host: one without a colon, or with a slash before it.
func (c *client) place(typed string) (place, error) {
	name, inside, ok := strings.Cut(typed, ":")
	if !ok || strings.Contains(name, "/") {
		return place{typed: typed, path: typed}, nil
	}
	v, err := c.tree.vm(name)
	if err != nil {
		return place{}, err
	}
	p := place{typed: typed, root: v.file("fs")}
	content := strings.HasSuffix(inside, "/.")
	last := content || inside == "" || strings.HasSuffix(inside, "/")
	if p.path, err = resolve(p.root, inside, last); err != nil {
		return place{}, p.explain(err)
	}
	if content {
		p.path += "/."
	}
	return p, nil
}

// places parses both sides of a copy.
func (c *client) places(args []string) (src, dst place, err error) {
	if src, err = c.place(args[0]); err == nil {
		dst, err = c.place(args[1])
	}
	return src, dst, err
}

// resolve follows the symbolic links in a guest's path as the guest does; the mount follows none.
// It follows the last part if last is set.
func resolve(root, inside string, last bool) (string, error) {
	done, rest := "/", strings.Split(inside, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		next := path.Join(done, part) // `..` of the root is the root
		if part == ".." || len(rest) == 0 && !last {
			done = next
			continue
		}
		target, err := os.Readlink(root + next)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", syscall.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				done = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOENT):
			done = next
		default:
			return "", err
		}
	}
	return filepath.Join(root, done), nil
}

func (p place) inGuest() bool { return p.root != "" }

func (p place) explain(err error) error {
	if errors.Is(err, syscall.ENOENT) {
		return failf(exitFailed, "there is no %s", p.typed)
	}
	return explain("cannot use "+p.typed, "", err)
}

// base returns the name of a copy of p in a directory; empty if p stands for its content.
func (p place) base() string {
	isRoot := p.inGuest() && filepath.Clean(p.path) == p.root
	b := filepath.Base(p.path)
	if isRoot || strings.HasSuffix(p.path, "/.") || b == "." || b == ".." || b == "/" {
		return ""
	}
	return b
}

// directory opens the directory p, or the one that a symbolic link at p leads to.
func (p place) directory() (*os.File, error) {
	dir := p.path
	if p.inGuest() {
		var err error
		if dir, err = resolve(p.root, strings.TrimPrefix(p.path, p.root), true); err != nil {
			return nil, err
		}
	}
	return open(dir, os.O_RDONLY|syscall.O_DIRECTORY)
}

// parent opens the directory that holds p.
func (p place) parent() (*os.File, error) {
	return open(filepath.Dir(strings.TrimRight(p.path, "/")), os.O_RDONLY|syscall.O_DIRECTORY)
}

// completePlaces offers VMs and leaves paths of the host to the shell, for at most limit arguments;
// 0 stands for any number.
func (c *client) completePlaces(limit int) completion {
	return func(_ *cobra.Command, args []string, typed string) (all []string, _ directive) {
		if limit > 0 && len(args) >= limit || strings.Contains(typed, "/") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		for _, name := range c.tree.names("vms") {
			if strings.HasPrefix(name, typed) {
				all = append(all, name+":")
			}
		}
		return all, cobra.ShellCompDirectiveNoSpace
	}
}

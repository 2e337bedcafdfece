// Inside makes a living VMM do what a guest that took it over would try, and prints what happened.
// First it prints what the VMM has open.
//
//	inside PID DAEMON NEIGHBOUR DIR...
//
// DAEMON and NEIGHBOUR are pids. Each DIR is one that the VMM tries to open and to change.
package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/inject"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: inside PID DAEMON NEIGHBOUR DIR...")
		os.Exit(1)
	}
	if err := run(os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func run(dirs []string) error {
	var pids [3]int
	for i := range pids {
		pid, err := strconv.Atoi(os.Args[i+1])
		if err != nil {
			return err
		}
		pids[i] = pid
	}
	if err := describe(pids[0]); err != nil {
		return err
	}
	here, err := os.MkdirTemp("/tmp", "b") // short, as a socket's address is
	if err != nil {
		return err
	}
	defer os.RemoveAll(here)
	if err := os.Chmod(here, 0o777); err != nil {
		return err
	}
	path, abstract := filepath.Join(here, "s"), "@"+here
	tcp, err := listen(path, abstract)
	if err != nil {
		return err
	}
	var all []inject.Attempt
	for _, p := range []string{"/", "/etc/passwd", "/proc", "/proc/self", "/dev/kvm", "/usr/bin/id",
		"/run", "../.."} {
		all = append(all, inject.Open(p))
	}
	for _, dir := range append(dirs, here, "/") {
		all = append(append(all, inject.Open(dir)), inject.Change(dir)...)
	}
	all = slices.Concat(all, []inject.Attempt{
		inject.Remove(path), inject.Unix(path), inject.Unix(abstract), inject.TCP(tcp),
		inject.Datagram(netip.MustParseAddrPort("127.0.0.1:53")),
	}, inject.Other("the daemon", pids[1]), inject.Other("a neighbour", pids[2]), inject.Self)
	p, err := inject.Attach(pids[0])
	if err != nil {
		return err
	}
	words := strings.NewReplacer(path, "SOCKET", abstract, "ABSTRACT", here, "HERE",
		tcp.String(), "TCP")
	for _, a := range all {
		fmt.Println(words.Replace(a.Result(p)))
	}
	return p.Detach()
}

// describe prints what a process has open, one line for each kind.
func describe(pid int) error {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return err
	}
	var all []string
	for _, link := range links {
		name, err := os.Readlink(link)
		if err != nil {
			return err
		}
		info, err := os.Stat(link)
		if err != nil {
			return err
		}
		if info.IsDir() {
			name = "directory " + name
		}
		name, _, _ = strings.Cut(name, ":[")
		all = append(all, "has "+name)
	}
	slices.Sort(all)
	for _, line := range slices.Compact(all) {
		fmt.Println(line)
	}
	return nil
}

// listen opens sockets of the host until the end of this program, and returns the address of a TCP
// port.
func listen(path, abstract string) (netip.AddrPort, error) {
	for _, name := range []string{path, abstract} {
		if _, err := net.Listen("unix", name); err != nil {
			return netip.AddrPort{}, err
		}
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return netip.AddrPort{}, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

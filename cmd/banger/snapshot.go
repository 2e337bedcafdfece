package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func (c *client) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "Take, list, restore and remove snapshots of a VM's disks"}
	take := &cobra.Command{
		Use: "create NAME SNAPSHOT", Short: "Take a snapshot of a VM's disks, running or not", Args: cobra.ExactArgs(2), ValidArgsFunction: c.complete(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.inSnapshots(args[0], args[1], "take the snapshot "+args[1], func(path string) error { return os.Mkdir(path, 0o777) })
		},
	}
	remove := &cobra.Command{
		Use: "rm NAME SNAPSHOT...", Short: "Remove snapshots", Args: cobra.MinimumNArgs(2), ValidArgsFunction: c.completeSnapshot,
		RunE: func(_ *cobra.Command, args []string) error {
			for _, name := range args[1:] {
				if err := c.inSnapshots(args[0], name, "remove the snapshot "+name, syscall.Rmdir); err != nil {
					return err
				}
			}
			return nil
		},
	}
	restore := &cobra.Command{
		Use: "restore NAME SNAPSHOT", Short: "Put the disks of a stopped VM back to a snapshot", Args: cobra.ExactArgs(2), ValidArgsFunction: c.completeSnapshot,
		RunE: func(_ *cobra.Command, args []string) error {
			return c.inSnapshots(args[0], args[1], "restore", func(path string) error {
				return write(filepath.Join(filepath.Dir(filepath.Dir(path)), "restore"), args[1]+"\n")
			})
		},
	}
	cmd.AddCommand(c.snapshotLsCmd(), take, remove, restore)
	return cmd
}

// inSnapshots does something with one name in a VM's snapshots/.
func (c *client) inSnapshots(name, snapshot, doing string, do func(path string) error) error {
	dir, err := c.tree().vm(name)
	if err != nil {
		return err
	}
	if snapshot == "" || snapshot == "." || snapshot == ".." || strings.Contains(snapshot, "/") {
		return &failure{exitUsage, fmt.Errorf("%q is no name of a snapshot", snapshot)}
	}
	switch err := do(filepath.Join(dir, "snapshots", snapshot)); {
	case errors.Is(err, fs.ErrExist):
		return &failure{exitFailed, fmt.Errorf("%s has a snapshot %s already", name, snapshot)}
	case errors.Is(err, fs.ErrNotExist): // the VM is there
		return &failure{exitFailed, fmt.Errorf("%s has no snapshot %s", name, snapshot)}
	default:
		return explain("cannot "+doing+" of "+name, filepath.Join(dir, "error"), err)
	}
}

// snapshotFacts is what is known of one snapshot.
type snapshotFacts struct {
	Name    string      `json:"name"`
	Created json.Number `json:"created"`
	Size    json.Number `json:"size"`
	State   string      `json:"state"`
	Frozen  json.Number `json:"frozen"`
}

func (c *client) snapshotLsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls NAME", Short: "List a VM's snapshots: name, time, bytes, state, whether its file systems stood still",
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.complete(1),
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := c.snapshots(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				b, err := json.Marshal(all)
				if err == nil {
					_, err = fmt.Fprintf(c.std.out, "%s\n", b)
				}
				return explain("cannot list the snapshots of "+args[0], "", err)
			}
			w := tabwriter.NewWriter(c.std.out, 0, 0, 2, ' ', 0)
			for _, s := range all {
				at, _ := strconv.ParseFloat(s.Created.String(), 64) // the daemon's own
				held := "-"
				if s.Frozen == "1" {
					held = "frozen"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Name, time.UnixMilli(int64(at*1000)).Format(time.DateTime), s.Size, s.State, held)
			}
			return explain("cannot list the snapshots of "+args[0], "", w.Flush())
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// snapshots gives a VM's, oldest first; one that is removed meanwhile is left out.
func (c *client) snapshots(name string) ([]snapshotFacts, error) {
	dir, err := c.tree().vm(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, "snapshots"))
	if err != nil {
		return nil, explain("cannot list the snapshots of "+name, "", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1) // as the daemon orders them
	if err != nil {
		return nil, explain("cannot list the snapshots of "+name, "", err)
	}
	all := []snapshotFacts{}
	for _, n := range names {
		s := snapshotFacts{Name: n}
		var err error
		fact := func(file string) string {
			text, e := read(filepath.Join(dir, "snapshots", n, file))
			err = errors.Join(err, e)
			return strings.TrimSpace(text)
		}
		s.Created, s.Size = json.Number(fact("created")), json.Number(fact("size"))
		s.State, s.Frozen = fact("state"), json.Number(fact("frozen"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, explain("cannot read the snapshot "+n+" of "+name, "", err)
		default:
			all = append(all, s)
		}
	}
	return all, nil
}

// completeSnapshot offers VMs, then the snapshots of the one given.
func (c *client) completeSnapshot(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return c.complete(1)(cmd, args, to)
	}
	var names []string
	if all, err := c.snapshots(args[0]); err == nil {
		for _, s := range all {
			names = append(names, s.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func (c *client) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", Short: "Take, list, restore and remove snapshots of a VM's disks",
		Args: cobra.ArbitraryArgs, RunE: ofGroup, ValidArgsFunction: cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(
		c.snapshotLsCmd(),
		&cobra.Command{
			Use: "create NAME SNAPSHOT", Short: "Take a snapshot of a VM's disks, running or not",
			Args: cobra.ExactArgs(2), ValidArgsFunction: c.completeVMs(1),
			RunE: c.onVM(func(v vm, args []string) error {
				return v.onSnapshot(args[0], "take the snapshot "+args[0],
					func(path string) error { return os.Mkdir(path, 0o777) })
			}),
		},
		&cobra.Command{
			Use: "rm NAME SNAPSHOT...", Short: "Remove snapshots",
			Args: cobra.MinimumNArgs(2), ValidArgsFunction: c.completeSnapshots,
			RunE: c.onVM(func(v vm, args []string) error {
				for _, name := range args {
					doing := "remove the snapshot " + name
					if err := v.onSnapshot(name, doing, syscall.Rmdir); err != nil {
						return err
					}
				}
				return nil
			}),
		},
		&cobra.Command{
			Use: "restore NAME SNAPSHOT", Short: "Return the disks of a stopped VM to a snapshot",
			Args: cobra.ExactArgs(2), ValidArgsFunction: c.completeSnapshots,
			RunE: c.onVM(func(v vm, args []string) error {
				return v.onSnapshot(args[0], "restore",
					func(string) error { return write(v.file("restore"), args[0]+"\n") })
			}),
		},
	)
	return cmd
}

// onSnapshot calls do with the path of one snapshot and explains its error.
func (v vm) onSnapshot(name, doing string, do func(path string) error) error {
	if !isName(name) {
		return failf(exitUsage, "%q is no name of a snapshot", name)
	}
	switch err := do(v.file("snapshots/" + name)); {
	case errors.Is(err, fs.ErrExist):
		return failf(exitFailed, "%s has a snapshot %s already", v.name, name)
	case errors.Is(err, fs.ErrNotExist): // the VM exists
		return failf(exitFailed, "%s has no snapshot %s%s", v.name, name,
			didYouMean(name, tree(v.dir).names("snapshots")))
	default:
		return v.explain("cannot "+doing+" of "+v.name, err)
	}
}

// snapshot holds the files of one directory below snapshots/.
type snapshot struct {
	Name    string      `json:"name"`
	Created json.Number `json:"created"` // Unix time in seconds
	Size    json.Number `json:"size"`    // bytes
	State   string      `json:"state"`
	Frozen  json.Number `json:"frozen"`
}

func (c *client) snapshotLsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls NAME",
		Short: "List a VM's snapshots: name, time, bytes, state, whether file systems were frozen",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	twin, looks := jsonFlag(cmd), c.lookFlags(cmd)
	cmd.RunE = c.onVM(func(v vm, _ []string) error {
		all, err := v.snapshots()
		if err != nil {
			return err
		}
		doing := "cannot list the snapshots of " + v.name
		if twin("") != "" {
			b, err := json.Marshal(all)
			if err == nil {
				_, err = fmt.Fprintf(c.std.out, "%s\n", b)
			}
			return explain(doing, "", err)
		}
		rows := make([][]string, len(all))
		for i, s := range all {
			frozen := "-"
			if s.Frozen == "1" {
				frozen = "frozen"
			}
			created := unixTime(s.Created.String()).Format(time.DateTime)
			rows[i] = []string{s.Name, created, s.Size.String(), s.State, frozen}
		}
		return c.print(looks().table([]column{{head: "NAME"}, {head: "CREATED"},
			{head: "SIZE", bytes: true}, {head: "STATE", state: true}, {head: "FROZEN"}}, rows))
	})
	return cmd
}

// snapshots returns a VM's snapshots, oldest first, without those that are removed meanwhile.
func (v vm) snapshots() ([]snapshot, error) {
	dir, err := os.Open(v.file("snapshots"))
	if err != nil {
		return nil, explain("cannot list the snapshots of "+v.name, "", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1) // in the daemon's order
	if err != nil {
		return nil, explain("cannot list the snapshots of "+v.name, "", err)
	}
	all := []snapshot{}
	for _, name := range names {
		var errs []error
		fact := func(file string) string {
			text, err := readTrimmed(filepath.Join(dir.Name(), name, file))
			errs = append(errs, err)
			return text
		}
		s := snapshot{Name: name, State: fact("state")}
		s.Created, s.Size = json.Number(fact("created")), json.Number(fact("size"))
		s.Frozen = json.Number(fact("frozen"))
		switch err := errors.Join(errs...); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, explain("cannot read the snapshot "+name+" of "+v.name, "", err)
		default:
			all = append(all, s)
		}
	}
	return all, nil
}

// completeSnapshots offers VMs, then the snapshots of the VM that was typed.
func (c *client) completeSnapshots(
	cmd *cobra.Command, args []string, typed string,
) ([]string, directive) {
	if len(args) == 0 {
		return c.completeVMs(1)(cmd, args, typed)
	}
	var names []string
	if v, err := c.tree.vm(args[0]); err == nil {
		all, _ := v.snapshots()
		for _, s := range all {
			names = append(names, s.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

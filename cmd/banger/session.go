package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// session is an open exec/clone of a VM, which is the ctl of the session that the open made. The
// daemon ends the session when banger ends, however that happens.
type session struct {
	vm  vm
	ctl *os.File
	dir string // below exec/
}

// newSession makes a session in a VM.
func (c *client) newSession(name string) (*session, error) {
	v, err := c.tree.vm(name)
	if err != nil {
		return nil, err
	}
	doing := "cannot run a command in " + name
	ctl, err := open(v.file("exec/clone"), os.O_RDWR)
	if err != nil {
		return nil, v.explain(doing, err)
	}
	number := make([]byte, 16)
	n, err := ctl.Read(number)
	if err != nil {
		ctl.Close()
		return nil, explain(doing, "", err)
	}
	return &session{v, ctl, v.file("exec/" + strings.TrimSpace(string(number[:n])))}, nil
}

// control writes a command to the session's ctl, all of whose bytes count. It returns the bare
// error of the write.
func (s *session) control(command string) error {
	_, err := s.ctl.Write([]byte(command + "\n"))
	return err
}

// explain returns the failure of a control.
func (s *session) explain(err error) error {
	return s.vm.explain("cannot run the command in "+s.vm.name, err)
}

func (s *session) file(name string) string { return filepath.Join(s.dir, name) }

func (s *session) open(name string, flags int) (*os.File, error) {
	f, err := open(s.file(name), flags)
	return f, explain("cannot use the session in "+s.vm.name, "", err)
}

// send copies in to the session's data and ends the command's input. It may go on until the process
// ends: nothing interrupts a read of the standard input.
func (s *session) send(data io.Writer, in io.Reader) {
	_ = transfer(data, in, streamBuffer) // a command need not read its input
	_ = s.control("eof")
}

func (c *client) proxyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "proxy VM [PORT]",
		Short: "Connect standard input and output to a port of the guest, 22 by default",
		Long: `Connect standard input and output to a TCP port of the guest's loopback.
The connection goes through the guest's agent and needs no route to the guest.
VM may be written as VM.vm, for ssh's ProxyCommand; see ` + "`banger ssh-config`.",
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeVMs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			port := "22"
			if len(args) == 2 {
				port = args[1]
			}
			if _, err := parsePort(port); err != nil {
				return err
			}
			return c.proxy(strings.TrimSuffix(args[0], ".vm"), port)
		},
	}
}

// proxy passes bytes until the guest closes the connection.
func (c *client) proxy(name, port string) error {
	s, err := c.newSession(name)
	if err != nil {
		return err
	}
	defer s.ctl.Close()
	if err := s.control("dial " + port); err != nil {
		return s.explain(err)
	}
	data, err := s.open("data", os.O_RDWR)
	if err != nil {
		return err
	}
	defer data.Close()
	go s.send(data, c.std.in)
	err = transfer(c.std.out, data, streamBuffer)
	return explain("cannot read from port "+port+" of "+name, "", err)
}

// sshConfig is a part of ssh_config(5). Its verbs are banger with its flags, and the file of keys.
const sshConfig = `# Made by banger ssh-config; put it into ~/.ssh/config, or include it there.
Host *.vm
	User root
	ProxyCommand %s proxy %%h %%p
	UserKnownHostsFile %s
	StrictHostKeyChecking yes
	UpdateHostKeys no
`

func (c *client) sshConfigCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-config",
		Short: "Print a part of ssh_config with which ssh finds the VMs as NAME.vm",
		Args:  cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			program := "banger"
			if string(c.tree) != defaultMount() || os.Getenv("BANGER_MOUNT") != "" {
				program += " --mount " + string(c.tree)
			}
			_, err := fmt.Fprintf(c.std.out, sshConfig, program, c.tree.file("known_hosts"))
			return err
		},
	}
}

package main

import (
	"io"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

const (
	plainShell = "/bin/sh"
	maxPasswd  = 1 << 20 // bytes that are read of a guest's /etc/passwd
)

// loginShells are the names of shells that know -l; of others a plain start is a shell as well.
var loginShells = []string{"ash", "bash", "dash", "fish", "ksh", "mksh", "sh", "zsh"}

func (c *client) shellCmd() *cobra.Command {
	f := execFlags{input: true}
	cmd := &cobra.Command{
		Use: "shell NAME", Short: "Open a login shell in a guest",
		Long: `Use the login shell of a guest's user, root unless -u says otherwise.
Without a terminal it reads commands from the standard input. The exit code is that of the shell, as
with banger exec.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeVMs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, in := terminal(c.std.in)
			_, out := terminal(c.std.out)
			f.terminal = in && out
			return asCommand(c.exec(args[0], c.loginShell(args[0], f.user), &f))
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.user, "user", "u", "root", "`USER` in the guest, a name or uid")
	flags.StringVarP(&f.dir, "workdir", "w", "", "`DIR` in the guest (default: the user's home)")
	return cmd
}

// loginShell returns the command line of the shell that a user of a guest has in /etc/passwd.
// Without one it is /bin/sh.
func (c *client) loginShell(name, user string) []string {
	p, err := c.place(name + ":/etc/passwd")
	if err != nil {
		return []string{plainShell} // what fails here fails again, with an error
	}
	shell := plainShell
	if dir, err := p.parent(); err == nil {
		defer dir.Close()
		if f, err := openFileAt(dir, p.base()); err == nil {
			defer f.Close()
			text, _ := io.ReadAll(io.LimitReader(f, maxPasswd))
			shell = shellOf(string(text), user)
		}
	}
	if slices.Contains(loginShells, path.Base(shell)) {
		return []string{shell, "-l"}
	}
	return []string{shell}
}

// shellOf returns the shell of a user, by name or uid, from the text of a passwd(5). It returns
// /bin/sh for an unknown user and for a shell that is there to refuse logins.
func shellOf(passwd, user string) string {
	user, _, _ = strings.Cut(user, ":") // without the group
	for _, line := range lines(passwd) {
		fields := strings.Split(line, ":")
		if len(fields) != 7 || fields[0] != user && fields[2] != user {
			continue
		}
		shell := strings.TrimSpace(fields[6])
		base := path.Base(shell)
		if !path.IsAbs(shell) || base == "nologin" || base == "false" {
			return plainShell
		}
		return shell
	}
	return plainShell
}

package main

import "testing"

func TestShellOf(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/bash\n" +
		"www:x:33:33::/var/www:/usr/sbin/nologin\nbroken:x\nbob:x:1000:1000:,,,:/home/bob:/bin/zsh\n" +
		"odd:x:7:7::/:sh -c reboot\nnone:x:8:8::/:\n"
	for user, want := range map[string]string{
		"root": "/bin/bash", "0": "/bin/bash", "www": "/bin/sh", "bob": "/bin/zsh",
		"1000:1000": "/bin/zsh", "broken": "/bin/sh", "odd": "/bin/sh", "none": "/bin/sh",
		"eve": "/bin/sh", "": "/bin/sh",
	} {
		if got := shellOf(passwd, user); got != want {
			t.Errorf("the shell of %q is %q, not %q", user, got, want)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"web", "web2", "db", "mail"}
	for word, want := range map[string]string{
		"weeb": "; did you mean web or web2?", "": "", "purple": "", "maill": "; did you mean mail?",
	} {
		if got := didYouMean(word, names); got != want {
			t.Errorf("%q: %q, not %q", word, got, want)
		}
	}
}

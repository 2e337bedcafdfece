# nomad job run nomad.hcl
#
# The client needs `plugin "raw_exec" { config { enabled = true } }` and runs as root or as a member
# of the group banger.
job "vm" {
  type = "batch"

  group "vm" {
    task "vm" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args    = ["-c", <<-SCRIPT
          exec banger run --rm "nomad-$NOMAD_SHORT_ALLOC_ID" -i builtin \
            -c "$CPUS" -m "$NOMAD_MEMORY_LIMIT"M -- sh -c 'uname -sr; nproc'
        SCRIPT
        ]
      }

      env {
        CPUS = "1"
      }

      resources {
        cores  = 1
        memory = 256
      }

      # banger passes it on, and ends within 10 seconds.
      kill_signal  = "SIGTERM"
      kill_timeout = "20s"
    }
  }
}

"""From one TOML file to frozen classes, or to located errors."""

import './linux-x64.js';
